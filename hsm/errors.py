"""What a token can answer, sorted by what to do about it.

TokenError
├─ TokenFatal       the module or its state is not to be trusted: make the process anew
├─ TokenTransient   may pass: a few more tries, with a pause
└─ TokenRefused     no retry can help and one may lock the token: PIN, configuration, a wrong key
"""

from __future__ import annotations

from pkcs11 import exceptions as ckr


class TokenError(Exception):
    """`code` is the CKR name, or a word of ours where no call failed."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class TokenFatal(TokenError):
    pass


class TokenTransient(TokenError):
    pass


class TokenRefused(TokenError):
    pass


_TRANSIENT = (ckr.FunctionFailed, ckr.DeviceMemory, ckr.HostMemory)
_REFUSED = (
    ckr.PinIncorrect, ckr.PinInvalid, ckr.PinLenRange, ckr.PinExpired, ckr.PinLocked, ckr.UserPinNotInitialized,
    ckr.NoSuchKey, ckr.NoSuchToken, ckr.MultipleTokensReturned, ckr.MultipleObjectsReturned,
)  # fmt: skip


def classify(error: Exception, doing: str) -> TokenError:
    """The TokenError for what python-pkcs11 raised. What is not known to be harmless is fatal."""
    code = type(error).__name__
    sentence = f"{doing}: the token answered {code}" + (f" ({error})" if str(error) else "")
    if isinstance(error, _TRANSIENT):
        return TokenTransient(code, sentence)
    if isinstance(error, _REFUSED):
        return TokenRefused(code, sentence)
    return TokenFatal(code, sentence)
