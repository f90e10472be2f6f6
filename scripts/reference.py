#!/usr/bin/env python3
"""Writes docs/reference/ from the schemas in deploy/, the programs' own help and the metrics in the sources.

reference.py          writes the files
reference.py --check  exits with 1 and names the files that differ
"""
import pathlib
import re
import subprocess
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "reference"
NOTE = "<!-- Written by `make docs` from {}. Do not edit. -->\n\n"


def bounds(schema):
    words = []
    for key, word in (
        ("minimum", "at least"), ("maximum", "at most"), ("minLength", "length at least"),
        ("maxLength", "length at most"), ("minItems", "items at least"), ("maxItems", "items at most"),
        ("maxProperties", "members at most"),
    ):
        if key in schema:
            words.append(f"{word} {schema[key]}")
    if "pattern" in schema:
        words.append(f"`{schema['pattern']}`".replace("|", "\\|"))
    if "enum" in schema:
        words.append("one of " + ", ".join(f"`{v}`" for v in schema["enum"]))
    if "default" in schema:
        words.append(f"default `{str(schema['default']).lower() if isinstance(schema['default'], bool) else schema['default']}`")
    return "; ".join(words)


def rows(schema, path, required):
    for name, field in schema.get("properties", {}).items():
        kind = field.get("type", "any")
        child = field
        suffix = ""
        if kind == "array":
            child = field.get("items", {})
            suffix = "[]"
            kind = f"[]{child.get('type', 'any')}"
        elif kind == "object" and isinstance(field.get("additionalProperties"), dict):
            kind = f"map of {field['additionalProperties'].get('type', 'any')}"
        full = f"{path}.{name}" if path else name
        need = "yes" if name in required else ""
        text = " ".join(field.get("description", "").split()).replace("|", "\\|")
        yield f"| `{full}{suffix}` | {kind} | {need} | {text} | {bounds(field)} |"
        yield from rows(child, full + suffix, child.get("required", []))


def resource(path):
    crd = yaml.safe_load(path.read_text())
    names = crd["spec"]["names"]
    scope = crd["spec"]["scope"].lower()
    text = NOTE.format(path.relative_to(ROOT)) + f"# {names['kind']}\n\n"
    short = ", ".join(f"`{n}`" for n in names.get("shortNames", []))
    for version in crd["spec"]["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        text += f"`{crd['spec']['group']}/{version['name']}`, {scope}, `{names['plural']}`"
        text += f" (short {short})\n\n" if short else "\n\n"
        text += " ".join(schema.get("description", "").split()) + "\n"
        common = ("apiVersion", "kind", "metadata", "spec", "status")
        own = {n: f for n, f in schema["properties"].items() if n not in common}
        parts = [(p, schema["properties"].get(p), p) for p in ("spec", "status")]
        if own:
            parts.append(("fields", {"properties": own, "required": schema.get("required", [])}, ""))
        for part, field, prefix in parts:
            if not field:
                continue
            text += f"\n## {part}\n\n| field | type | required | meaning | bounds |\n|---|---|---|---|---|\n"
            text += "\n".join(rows(field, prefix, field.get("required", []))) + "\n"
    return f"{names['singular']}.md", text


def program(name):
    binary = ROOT / ".build" / "release" / name

    def ask(words):
        command = [str(binary), *words, "--help"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60,
                              env={"COLUMNS": "100", "PATH": "/usr/bin:/bin"}).stdout

    def walk(words):
        text = ask(words)
        yield f"## `{' '.join([name, *words])}`\n\n```\n{text.rstrip()}\n```\n"
        # One list, or one for each group of subcommands; each ends with an empty line.
        for part in text.split("SUBCOMMANDS:")[1:]:
            for line in part.split("\n\n")[0].splitlines():
                if line.startswith("  ") and not line.startswith("   ") and line.split():
                    yield from walk([*words, line.split()[0]])

    return f"{name}.md", NOTE.format(f"`{name} --help`") + f"# {name}\n\n" + "\n".join(walk([]))


WHERE = {
    "BareMetal": "bm-controller, bm-handler", "BMC": "bm-controller", "Kubernetes": "every role that talks to the API server",
    "Reconciler": "every controller", "SoftDPU": "softdpu", "SoftHost": "softhost", "Storage": "csi-controller",
    "MachineAPI": "bm-api", "Telemetry": "every role", "LocalCloud": "ycloud up", "OPIBridge": "opi-bridge",
}
METRIC = re.compile(
    r'\.(counter|gauge|histogram|collected)\(\s*"([a-z0-9_]+)",\s*help:\s*((?:"(?:[^"\\\\]|\\\\.)*"[\s+]*)+)'
    r'(?:,\s*labels:\s*\[([^\]]*)\])?(?:[^)]*?kind:\s*\.(\w+))?', re.S)


def metrics():
    found = {}
    for path in sorted((ROOT / "Sources").rglob("*.swift")):
        room = path.relative_to(ROOT / "Sources").parts[0]
        for kind, name, text, labels, own in METRIC.findall(path.read_text()):
            meaning = "".join(re.findall(r'"((?:[^"\\\\]|\\\\.)*)"', text))
            names = ", ".join(f"`{label}`" for label in re.findall(r'"([^"]+)"', labels))
            found[name] = (own if kind == "collected" else kind, names, meaning, WHERE.get(room, room))
    text = NOTE.format("the sources") + "# Metrics\n\nServed at `/metrics` where a role has `--metrics-address`.\n\n"
    text += "| metric | kind | labels | meaning | told by |\n|---|---|---|---|---|\n"
    text += "\n".join(f"| `{n}` | {k} | {l} | {m} | {w} |" for n, (k, l, m, w) in sorted(found.items())) + "\n"
    return "metrics.md", text


def main():
    deploy = ROOT / "deploy"
    schemas = sorted((deploy / "crds").glob("*.yaml")) + sorted((deploy / "snapshot-crds").glob("*.yaml"))
    files = dict(resource(p) for p in schemas)
    files.update(program(name) for name in ("ycloud", "bmctl"))
    files.update([metrics()])
    differ = [n for n, text in files.items() if not (OUT / n).exists() or (OUT / n).read_text() != text]
    if "--check" in sys.argv[1:]:
        for name in differ:
            print(f"docs/reference/{name} differs from its source: run make docs")
        return 1 if differ else 0
    OUT.mkdir(parents=True, exist_ok=True)
    for name in differ:
        (OUT / name).write_text(files[name])
        print(f"docs/reference/{name}")
    return 0


sys.exit(main())
