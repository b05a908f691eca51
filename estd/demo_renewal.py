"""The demonstration's label `renewal`, for devices that come back late, renamed or twice (docs/renewal.md)."""

LABELS = """
# A label that renews devices that slept past their certificate's end (docs/renewal.md).
[profile.renewable]
subject = "csr"
dns = ["*.devices.example.com"]
supersede = "when-seen"

[label.renewal]
ca = "root"
expired_window = "30d"

[[label.renewal.allow]]
who = "issued"

[[label.renewal.allow]]
who = "basic"
credentials = "credentials"
profile = "renewable"
"""
