#!/usr/bin/env python3
"""Records commands in a terminal, and writes the recording as an SVG picture: docs/img/vmm.svg, the picture of the README.

    docs/img/record.py PROGRAM >docs/img/vmm.svg     # `make recording` does this

Each command is really run. The picture shows the first lines of its output, one after the other, and then all of them.
"""

import html
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap

# A command, the number of lines of its output that are shown, and the words that begin the lines that are left out.
COMMANDS = [
    ("vmm crash.elf --mem 16M", 10, ("  r", "  cs ", "  stack", "  last")),
    ("vmm simvirtio", 9, ("vmm: simvirtio by",)),
    ("vmm compare", 9, ("The values",)),
]
COLUMNS = 118
LINE = 17  # pixels
LEFT = 16
PAUSE = 1.2  # seconds between two commands
STEP = 0.06  # seconds between two lines


def run(command, program):
    """Returns the lines that a command prints on stdout and stderr."""
    guests = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../examples/first")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(guests, folder, dirs_exist_ok=True)
        subprocess.run(["make", "--silent", "-C", folder], check=True)
        os.symlink(os.path.abspath(program), os.path.join(folder, "vmm"))
        path = folder + ":" + os.environ["PATH"]
        ran = subprocess.run(
            ["sh", "-c", command + " 2>&1"], stdout=subprocess.PIPE, cwd=folder, env={**os.environ, "PATH": path}, timeout=300
        )
        return ran.stdout.decode().replace(os.path.realpath(folder) + "/", "").splitlines()


def fitted(text):
    """Returns the lines of a sentence, or the beginning of a row of a table."""
    if text.startswith("vmm: "):
        return textwrap.wrap(text, COLUMNS, subsequent_indent="     ")
    return [text if len(text) <= COLUMNS else text[: COLUMNS - 1] + "…"]


def lines(program):
    """Yields each line of the recording: its time, its CSS class and its text."""
    time = 0.3
    for command, most, left_out in COMMANDS:
        yield time, "command", "$ " + command
        time += PAUSE / 2
        shown = [line for line in run(command, program) if not line.startswith(left_out)]
        for number, line in enumerate(shown[:most]):
            kind = "first" if number == 0 and line.startswith("vmm:") else "output"
            for part in fitted(line):
                yield time, kind, part
            time += STEP
        if len(shown) > most:
            yield time, "output", "..."
        time += PAUSE
        yield time, "output", ""


def main():
    program = sys.argv[1]
    recorded = list(lines(program))[:-1]
    height, width = len(recorded) * LINE + 2 * LEFT, int(COLUMNS * 7.25) + 2 * LEFT
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="A recording of vmm in a terminal">\n'
        "<style>text{font:12px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;white-space:pre;fill:#d7dae0;"
        "animation:appear .01s both}.command{fill:#8fd18f;font-weight:bold}.first{fill:#f0c674}"
        "@keyframes appear{from{opacity:0}to{opacity:1}}"
        "@media (prefers-reduced-motion:reduce){text{animation:none}}</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#1c2025"/>'
    )
    for number, (time, kind, text) in enumerate(recorded):
        if text:
            print(
                f'<text xml:space="preserve" class="{kind}" x="{LEFT}" y="{LEFT + (number + 1) * LINE - 5}" '
                f'style="animation-delay:{time:.2f}s">{html.escape(text)}</text>'
            )
    print("</svg>")


if __name__ == "__main__":
    main()
