"""The demonstration's label `registry`, whose devices are in the registry (docs/devices.md)."""

LABEL = """
# A label whose devices are in the registry: estd device add, import, secret (docs/devices.md).
[profile.registered]
dns = "identity"
uri = "identity"
other_names = "replace"
keys = ["ec-p256", "ec-p384", "ec-p521", "ed25519", "rsa-2048", "rsa-3072", "rsa-4096"]

[label.registry]
ca = "root"
revocation_challenge = true         # docs/challenges.md

[[label.registry.allow]]
who = "issued"

[[label.registry.allow]]
who = "registry"                    # with its factory's certificate
anchors = "demo/manufacturer.pem"
crls = ["demo/manufacturer.crl"]
manufacturer = "Demo Manufacturer"
match = "subject.serialNumber"
profile = "registered"
names = { CN = "{serialNumber}.devices.example.com", dns = ["{serialNumber}.devices.example.com"] }

[[label.registry.allow]]
who = "registry"                    # with a one-time secret
secrets = ["basic", "otpChallenge"]
profile = "registered"
names = { CN = "{serialNumber}", dns = ["{serialNumber}.devices.example.com"], uri = ["urn:dev:{serialNumber}"] }
"""
