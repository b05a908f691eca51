"""What is wrong with the credentials files that a configuration names: by a file that cannot be read nobody gets in."""

from __future__ import annotations

from estd import credentials
from estd.config import Config


def problems(config: Config) -> list[str]:
    """One sentence for each file that cannot be read."""
    files = [
        (f"label.{label.name}.allow[{index}].credentials", allow.credentials)
        for label in config.labels.values()
        for index, allow in enumerate(label.allow)
    ]
    found: list[str] = []
    for name, path in (*files, ("admin.credentials", config.approvers)):
        if path is None:
            continue
        try:
            credentials.parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            found.append(f"{name}: there is no {path}; this makes it: estd credential add {path} NAME")
        except OSError as error:
            found.append(f"{name}: {error}")
        except ValueError as error:
            found.append(f"{name}: {path}: {error}")
    return found
