"""Known vulnerabilities of the versions in a constraints file, by `pip-audit`; nothing unasked counts as sound.

Exit status: 0 if every version was looked up and none is vulnerable, 1 if one is, 2 if some could not be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys


def judge(answer: dict) -> tuple[int, list[str]]:
    """Exit status, and lines that say why.

    Args:
        answer: what `pip-audit --format json` prints.
    """
    packages = answer["dependencies"]
    unasked = [each for each in packages if "skip_reason" in each]
    bad = [each for each in packages if each.get("vulns")]
    lines = [
        f"{each['name']} {each['version']}: {found['id']}, mended in {' '.join(found['fix_versions']) or 'no version'}"
        for each in bad
        for found in each["vulns"]
    ]
    lines += [f"not looked up: {each['name']} ({each['skip_reason']})" for each in unasked]
    lines.append(
        f"{len(packages) - len(unasked)} of {len(packages)} versions looked up, {len(bad)} with known vulnerabilities."
    )
    return (1 if bad else 2 if unasked or not packages else 0), lines


def main(path: str) -> int:
    command = [
        "-m",
        "pip_audit",
        "-r",
        path,
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner=off",
    ]
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    try:
        status, lines = judge(json.loads(run.stdout))
    except json.JSONDecodeError:
        reason = (run.stderr.strip().splitlines() or ["no answer"])[-1]
        status, lines = 2, [f"NOTHING WAS LOOKED UP: pip-audit reached no vulnerability service ({reason})."]
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
