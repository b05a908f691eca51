"""The demonstration's label `renewal`, for devices that come back late, renamed or twice, and `line`, whose
registration authorities ask for others (docs/renewal.md)."""

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
