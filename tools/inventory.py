"""A stand-in for a service of yours that knows which device may have what (docs/devices.md): it lets in every `pump-…`
that shows the secret `of-SERIAL`, such as pump-1 with of-pump-1. For the demonstration alone.

    python3 tools/inventory.py demo/demo/inventory.secret [PORT]
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


def verdict(question: dict[str, str]) -> dict[str, object]:
    user = question.get("user", "")
    right = hmac.compare_digest(question.get("secret_sha256", ""), hashlib.sha256(f"of-{user}".encode()).hexdigest())
    if right and user.startswith("pump-"):
        name = f"{user}.devices.example.com"
        return {"id": question["id"], "allow": True, "names": {"subject": f"CN={user}", "dns": [name]}}
    return {"id": question["id"], "allow": False, "why": "The inventory does not have this device."}


class Inventory(BaseHTTPRequestHandler):
    secret = ""

    def do_POST(self) -> None:
        if not hmac.compare_digest(self.headers.get("Authorization", ""), f"Bearer {self.secret}"):
            self.send_error(403)
            return
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"answers": [verdict(one) for one in asked["questions"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Inventory.secret = Path(sys.argv[1]).read_text().strip()
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 9444
    HTTPServer(("127.0.0.1", port), Inventory).serve_forever()
