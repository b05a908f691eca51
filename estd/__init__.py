"""estd: an EST server (RFC 7030) that hands devices certificates signed on an HSM."""

__version__ = "0.1.0"
