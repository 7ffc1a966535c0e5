"""Looks through the tracked files for what must not be published.

Package hosts and home folders tie a checkout to one machine; locks with download addresses tie
it to one mirror.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_BYTES = 25_000_000

# Written apart, so that this file does not find itself.
HOSTS = ["pypi" + r"\.org", "python" + r"hosted\.org", "deb" + r"\.debian\.org", "npmjs" + r"\.org"]
FOLDERS = ["/" + r"home/\w", "/" + r"Users/\w", re.escape(str(ROOT)) + r"\b"]
# "/root" alone says little; a checkout at "/" or "/src" would match half the prose.
PATTERN = re.compile("|".join(HOSTS + [f for f in FOLDERS if len(f) > len(r"/a/b\b")]))


def main() -> int:
    """Prints each finding as file:line and returns how the process should exit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    findings = [
        finding for name in listed.stdout.split("\0") if name for finding in look(ROOT / name)
    ]
    for finding in findings:
        print(finding, file=sys.stderr)
    return 1 if findings else 0


def look(path: Path) -> list[str]:
    """What is wrong with one file, a line each."""
    if not path.is_file():
        return []
    name = path.relative_to(ROOT)
    data = path.read_bytes()
    if len(data) > LIMIT_BYTES:
        return [f"{name}: {len(data)} bytes, more than a repository should carry"]
    if b"\0" in data[:8192]:
        return []
    lines = data.decode("utf-8", errors="replace").splitlines()
    return [
        f"{name}:{number}: {match.group()}"
        for number, line in enumerate(lines, 1)
        if (match := PATTERN.search(line))
    ]


if __name__ == "__main__":
    sys.exit(main())
