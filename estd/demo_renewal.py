"""The demonstration's labels `renewal` and `sleepers`, for devices that come back renamed, twice or late, and `line`,
whose registration authorities ask for others (docs/renewal.md)."""

LABELS = """
# A label that renews devices that slept past their certificate's end (docs/renewal.md).
[profile.renewable]
subject = "csr"
dns = ["*.devices.example.com"]
supersede = "when-seen"
renewal_window = ["60%", "80%"]

[label.renewal]
ca = "root"
change_names = true
expired_window = "30d"

[[label.renewal.allow]]
who = "issued"

[[label.renewal.allow]]
who = "basic"
credentials = "credentials"
profile = "renewable"

# Certificates of a minute, so that nobody has to wait long to see one renewed after its end.
[profile.brief]
subject = "csr"
dns = ["*.devices.example.com"]
validity = "1m"

[label.sleepers]
ca = "root"
expired_window = "30d"

[[label.sleepers.allow]]
who = "issued"
profile = "renewable"

[[label.sleepers.allow]]
who = "basic"
credentials = "credentials"
profile = "brief"

# Registration authorities: `registrars` gives them their certificates, `line` lets in those that ras.pem lists.
[profile.registrar]
subject = "csr"
extended_key_usage = ["clientAuth", "cmcRA"]

[label.registrars]
ca = "root"

[[label.registrars.allow]]
who = "basic"
credentials = "credentials"
profile = "registrar"

[label.line]
ca = "root"

[[label.line.allow]]
who = "ra"
certificates = "ras.pem"
profile = "renewable"

[[label.line.allow]]
who = "issued"
"""
