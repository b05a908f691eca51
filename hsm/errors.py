"""What a token can answer, sorted by what to do about it.

TokenError
├─ TokenFatal       the module or its state is not to be trusted: make the process anew
├─ TokenTransient   may pass: a few more tries, with a pause
└─ TokenRefused     no retry can help and one may lock the token: PIN, configuration, a wrong key
"""

from __future__ import annotations


class TokenError(Exception):
    """`code` is the CKR name, or a word of ours where no call failed."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code

    @property
    def is_of_pin(self) -> bool:
        """The PIN was refused: to try it again may lock the token."""
        return self.code.startswith("Pin")


class TokenFatal(TokenError):
    pass


class TokenTransient(TokenError):
    pass


class TokenRefused(TokenError):
    pass


# By python-pkcs11's names of the CKR codes, so that telling errors apart does not load the binding.
_TRANSIENT = frozenset({"FunctionFailed", "DeviceMemory", "HostMemory"})
_REFUSED = frozenset(
    {"PinIncorrect", "PinInvalid", "PinLenRange", "PinExpired", "PinLocked", "UserPinNotInitialized", "NoSuchKey",
     "NoSuchToken", "MultipleTokensReturned", "MultipleObjectsReturned"}
)  # fmt: skip


def classify(error: Exception, doing: str) -> TokenError:
    """The TokenError for what python-pkcs11 raised. What is not known to be harmless is fatal."""
    code = type(error).__name__
    sentence = f"{doing}: the token answered {code}" + (f" ({error})" if str(error) else "")
    if code in _TRANSIENT:
        return TokenTransient(code, sentence)
    if code in _REFUSED:
        return TokenRefused(code, sentence)
    return TokenFatal(code, sentence)
