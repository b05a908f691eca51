#!/bin/sh
# Make the demonstration instance where there is none, say how to use it, and serve it in the foreground.
set -eu
bin=$1
demo=$2
[ -e "$demo/estd.toml" ] || "$bin/estd" init "$demo" --demo
"$bin/estd" check "$demo/estd.toml"

estd=$bin/estd
url=https://$(sed -n 's/^listen = "\([^"]*\)".*/\1/p' "$demo/estd.toml")
admin=http://$(sed -n 's/^admin = "\([^"]*\)".*/\1/p' "$demo/estd.toml")
cat <<TEXT

estd serves $url; Ctrl-C ends it. In another terminal, in this folder:

  A device with the factory's password, by curl and openssl:
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout device.key -subj /CN=device-1 \\
        -outform DER | openssl base64 -A > device.csr.b64
    curl -sS --cacert $demo/ca.pem -u "\$(cat $demo/demo/basic)" -H 'Content-Type: application/pkcs10' \\
        --data-binary @device.csr.b64 $url/.well-known/est/simpleenroll \\
        | openssl base64 -d -A | openssl pkcs7 -inform DER -print_certs -out device.pem
    openssl verify -CAfile $demo/ca.pem device.pem

  The same by strongSwan (apt-get install strongswan-pki libstrongswan-standard-plugins libstrongswan-extra-plugins):
    pki --gen --type ecdsa --size 256 --outform pem > vpn.key
    pki --req --in vpn.key --type ecdsa --dn "CN=device-2" --outform pem > vpn.csr
    pki --est --url $url --in vpn.csr --cacert $demo/ca.pem \\
        --userpass "\$(cat $demo/demo/basic)" --outform pem > vpn.pem

  A device with its manufacturer's identity, by estd's own client, and a renewal of what it got:
    $estd enroll $url --cacert $demo/ca.pem --cert $demo/demo/idevid.pem \\
        --key $demo/demo/idevid.key --out device
    $estd enroll $url --cacert $demo/ca.pem --cert device.pem --key device.key --renew --out renewed

  A device that a person must approve first (docs/approval.md); decide in a browser at $admin/requests
  with the user and password in $demo/demo/approver, or in another terminal while it waits:
  ($estd requests list --config $demo/estd.toml, then estd requests approve NUMBER)
    $estd enroll $url --cacert $demo/ca.pem --label approval --credential $demo/demo/basic \\
        --subject CN=gateway-1 --out gateway --wait 10m

  Every other part:  README.md, "Try each part"
  What was issued:   $estd cert list --config $demo/estd.toml
  Metrics:           $admin/metrics   (dashboard: grafana/README.md)
  Health:            $admin/readyz and /healthz

TEXT
exec "$bin/estd" serve "$demo/estd.toml"
