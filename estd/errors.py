"""What can be wrong with a request, each with the status that the device is told.

    EstError                  status   reasons
    ├─ Waiting                202      waiting: no refusal, but an answer that is not a certificate yet
    ├─ BadRequest             400      not_base64 not_der pem bad_csr bad_signature weak_key bad_key key_refused
    │                                linking bad_http csrattrs decrypt_key proxy bad_cert_id
    ├─ Unauthenticated        401      no_credential wrong_credential cert_expired cert_unknown cert_not_client
    │                                secret_spent
    ├─ Forbidden              403      not_granted name_refused revoked not_issued rekey_refused denied proxy
    │                                device_unknown device_disabled cert_expired
    ├─ NotFound               404      unknown_label unknown_operation unknown_certificate
    ├─ MethodNotAllowed       405      method
    ├─ TooLarge               413      too_large
    ├─ UnsupportedMediaType   415      media_type
    ├─ TooMany                429      too_many throttled
    └─ Unavailable            503      overloaded token_away ledger_away deadline crl_stale webhook_away internal

An error carries the sentence that the device reads; `http.respond` is the one place where it becomes HTTP. A 401 has
an empty body (clients in the field fail on one), so every error's sentence also goes out in the header Estd-Error.
"""

from __future__ import annotations

import random
from enum import StrEnum


class Reason(StrEnum):
    """Why a request was refused: a closed set, the label of `estd_rejections_total`."""

    NOT_BASE64 = "not_base64"
    NOT_DER = "not_der"
    PEM = "pem"
    BAD_CSR = "bad_csr"
    BAD_SIGNATURE = "bad_signature"
    WEAK_KEY = "weak_key"
    BAD_KEY = "bad_key"
    LINKING = "linking"
    BAD_HTTP = "bad_http"
    NO_CREDENTIAL = "no_credential"
    WRONG_CREDENTIAL = "wrong_credential"
    CERT_EXPIRED = "cert_expired"
    CERT_UNKNOWN = "cert_unknown"
    CERT_NOT_CLIENT = "cert_not_client"
    NOT_GRANTED = "not_granted"
    NAME_REFUSED = "name_refused"
    KEY_REFUSED = "key_refused"
    REVOKED = "revoked"
    CRL_STALE = "crl_stale"
    NOT_ISSUED = "not_issued"
    REKEY_REFUSED = "rekey_refused"
    WAITING = "waiting"
    DENIED = "denied"
    TOO_MANY = "too_many"
    UNKNOWN_LABEL = "unknown_label"
    UNKNOWN_OPERATION = "unknown_operation"
    METHOD = "method"
    TOO_LARGE = "too_large"
    MEDIA_TYPE = "media_type"
    OVERLOADED = "overloaded"
    TOKEN_AWAY = "token_away"
    LEDGER_AWAY = "ledger_away"
    DEADLINE = "deadline"
    INTERNAL = "internal"
    CSRATTRS = "csrattrs"
    DECRYPT_KEY = "decrypt_key"
    PROXY = "proxy"
    DEVICE_UNKNOWN = "device_unknown"
    DEVICE_DISABLED = "device_disabled"
    SECRET_SPENT = "secret_spent"
    THROTTLED = "throttled"
    WEBHOOK_AWAY = "webhook_away"
    BAD_CERT_ID = "bad_cert_id"
    UNKNOWN_CERTIFICATE = "unknown_certificate"


REASONS: tuple[Reason, ...] = tuple(Reason)
"""Their order is their number in frames and in the metrics' shared memory."""


def retry_seconds(base_seconds: int) -> int:
    """A Retry-After between one and two times `base_seconds`, so that a herd that was shed does not return as one."""
    return base_seconds + random.randrange(base_seconds + 1)


class EstError(Exception):
    """A refusal: `status` for HTTP, `reason` for metrics, `sentence` for the person who reads the device's log."""

    status = 500

    def __init__(self, reason: Reason, sentence: str, *, retry_after: int | None = None, why: str = "") -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence
        self.retry_after = retry_after
        """Seconds, or None where the same request would fail again."""
        self.why = why
        """What the log says beside it, and the device is not told."""


class Waiting(EstError):
    """The request was taken, and waits for a person: the same one is asked again later (RFC 7030 §4.2.3)."""

    status = 202


class BadRequest(EstError):
    status = 400


class Unauthenticated(EstError):
    status = 401


class Forbidden(EstError):
    status = 403


class NotFound(EstError):
    status = 404


class MethodNotAllowed(EstError):
    status = 405

    def __init__(self, allow: str) -> None:
        super().__init__(Reason.METHOD, f"This operation takes {allow} only.")
        self.allow = allow


class TooLarge(EstError):
    status = 413


class UnsupportedMediaType(EstError):
    status = 415


class TooMany(EstError):
    """One identity asks for more than its share, or wrongly too often: it is told when to come back."""

    status = 429


class Unavailable(EstError):
    """The service's own trouble or load: the same request may succeed later, and is told when to come back."""

    status = 503

    def __init__(self, reason: Reason, sentence: str, *, retry_after: int | None = None, why: str = "") -> None:
        wait = retry_seconds(2) if retry_after is None else retry_after
        super().__init__(reason, sentence, retry_after=wait, why=why)


BY_STATUS: dict[int, type[EstError]] = {
    kind.status: kind
    for kind in (
        Waiting, BadRequest, Unauthenticated, Forbidden, NotFound, TooLarge, UnsupportedMediaType, TooMany, Unavailable,
    )
}  # fmt: skip
"""The class for each status that an issuer's answer may carry (see frames)."""


EXIT_FATAL = 3
"""A child's exit status: its token or its ledger failed, and making the process anew may mend it."""
EXIT_REFUSED = 4
"""The token refused the PIN: making the process anew could lock the token."""


class ConfigError(Exception):
    """Everything that is wrong with a configuration, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ClientError(Exception):
    """The server cannot be reached or believed, or its answer is not EST's."""


class Refused(ClientError):
    """The server answered with another status than 200."""

    def __init__(self, status: int, sentence: str, retry_after: str | None) -> None:
        super().__init__(f"the server answered {status}: {sentence}")
        self.status = status
        self.sentence = sentence
        self.retry_after = retry_after
