"""The demonstration's labels for other ways in: `linked` and `exact`, which insist on what csrattrs says, `balanced`,
behind a proxy, and `inventory`, which asks a service (docs/csrattrs.md, docs/proxy.md, docs/devices.md)."""

LABELS = """
# Labels that insist: on a link between request and TLS connection, and on what csrattrs says (docs/csrattrs.md).
[profile.exact]
subject = "csr"
dns = ["*.devices.example.com"]
keys = ["ec-p256"]

[label.linked]
ca = "root"
linking = "demanded"

[[label.linked.allow]]
who = "issued"

[[label.linked.allow]]
who = "basic"
credentials = "credentials"
profile = "exact"

[label.exact]
ca = "root"
csrattrs = "both"
enforce_csrattrs = true

[[label.exact.allow]]
who = "issued"

[[label.exact.allow]]
who = "basic"
credentials = "credentials"
profile = "exact"

# A label behind a proxy that ends TLS and passes its clients' certificates on (docs/proxy.md).
[proxy.balancer]
certificates = "demo/balancer.pem"
form = "rfc9440"

[label.balanced]
ca = "root"
proxies = ["balancer"]

[[label.balanced.allow]]
who = "issued"

[[label.balanced.allow]]
who = "certificate"
anchors = "demo/manufacturer.pem"
crls = ["demo/manufacturer.crl"]
profile = "idevid"

# A label that asks a service who may have what; tools/inventory.py stands in for yours (docs/devices.md).
[label.inventory]
ca = "root"

[[label.inventory.allow]]
who = "issued"

[[label.inventory.allow]]
who = "webhook"
url = "http://127.0.0.1:9444/who"
secret_file = "demo/inventory.secret"
profile = "registered"
"""
