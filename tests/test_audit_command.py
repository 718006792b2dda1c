"""The command as a user calls it: what it prints, writes and returns."""

import dataclasses
import json
import os
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pytest
from image_files import as_folder, encoded

from covid_lab.__main__ import main
from covid_lab.audit import checklists, command, data_checks, protocol
from covid_lab.audit.checklists import ITEMS, answers
from covid_lab.audit.findings import Finding, as_table, figure, worst
from covid_lab.datasets import open_dataset
from covid_lab.phantoms import draw_radiograph
from covid_project.settings import PROJECT

SIDE = 64
AUCS = pd.DataFrame(
    {"view": ["border"], "kind": ["lung-free"], "auc": [0.9], "low": [0.8], "high": [0.95],
     "null_high": [0.6], "accuracy": [0.8], "features": [12], "n": [24], "groups": [23]}
)  # fmt: skip


@pytest.fixture(autouse=True)
def shortcuts(monkeypatch):
    """Replace the audit of shortcuts, which has tests of its own; return what it was asked."""
    asked = []

    def audit_shortcuts(dataset, *, masks=None, seed=0, progress=print):
        asked.append((dataset, masks, seed))
        finding = Finding("shortcuts", "the border", "warn", "tells", 0.9, 0.8, 0.95, 24)
        return types.SimpleNamespace(findings=[finding], table=AUCS)

    def audit_model(model, dataset, rows, *, masks=None, seed=0):
        return [Finding("shortcuts", "without the lungs", "pass", f"{len(rows)} images")]

    monkeypatch.setattr(command, "audit_shortcuts", audit_shortcuts)
    monkeypatch.setattr(command, "audit_model", audit_model)
    return asked


@pytest.fixture
def tree(tmp_path):
    """Folder of 8, 2, 2 drawn radiographs per class, without a fault."""
    counts = {"train": 8, "val": 2, "test": 2}
    names = [
        f"{split}/{name}/{name}-{number}.png"
        for split, n in counts.items()
        for name in ("NORMAL", "COVID")
        for number in range(n)
    ]
    return as_folder({name: drawn(seed) for seed, name in enumerate(names)}, tmp_path / "set")


def drawn(seed):
    return encoded(draw_radiograph(np.random.default_rng(seed), SIDE).image)


def leak(tree):
    image = (tree / "train" / "COVID" / "COVID-1.png").read_bytes()
    (tree / "test" / "COVID" / "again <b>.png").write_bytes(image)


def test_an_audit_writes_tables_and_a_page_and_returns_0(tree, tmp_path, capsys, shortcuts):
    out = tmp_path / "out"
    assert main(["audit", "--data", str(tree), "--out", str(out), "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "24 images: 12 NORMAL (0), 12 COVID (1)" in printed
    assert "images read: 24 of 24" in printed
    names = {path.name for path in out.iterdir()}
    assert names == {"audit.csv", "audit.json", "audit.html", "duplicates.csv", "shortcuts.csv"}
    findings = pd.read_csv(out / "audit.csv")
    assert list(findings) == ["area", "check", "verdict", "found", "value", "low", "high", "n"]
    for row in findings.itertuples():
        assert row.check in printed
    assert findings["verdict"].tolist().count("warn") == 1
    written = json.loads((out / "audit.json").read_text("utf-8"))
    assert written["data"]["fingerprint"] == open_dataset(tree).fingerprint
    assert written["data"]["images"]["train/COVID"] == 8
    assert written["data"]["phantoms"] is False
    assert written["seed"] == 3
    assert "numpy" in written["versions"]
    assert len(written["findings"]) == len(findings)
    assert written["shortcuts"] == AUCS.to_dict("records")
    assert str(tmp_path) not in (out / "audit.json").read_text()
    assert [(masks, seed) for _, masks, seed in shortcuts] == [(None, 3)]


def test_a_leak_is_printed_and_returns_1(tree, tmp_path, capsys):
    leak(tree)
    assert main(["audit", "--data", str(tree), "--out", str(tmp_path / "out")]) == 1
    assert "again <b>.png" in capsys.readouterr().out
    pairs = pd.read_csv(tmp_path / "out" / "duplicates.csv")
    assert pairs[["path_first", "path_second", "kind"]].to_numpy().tolist() == [
        ["train/COVID/COVID-1.png", "test/COVID/again <b>.png", "exact"]
    ]
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "again &lt;b&gt;.png" in page
    assert "<b>" not in page


def test_what_is_used_for_shortcuts_keeps_copies_and_patients_together(tree, tmp_path, shortcuts):
    leak(tree)
    (tree / "val" / "COVID" / "bad.png").write_bytes(b"x")
    main(["audit", "--data", str(tree), "--out", str(tmp_path / "out")])
    table = shortcuts[0][0].table.set_index("path")
    assert len(table) == 25
    group = table["group"]
    assert group["train/COVID/COVID-1.png"] == group["test/COVID/again <b>.png"]
    assert group.nunique() == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.zip"], "no such path: nowhere.zip"),
        (["--data", "{tree}", "--classes", "NORMAL,FLU"], "no class folder FLU"),
        (["--data", "{tree}", "--pattern", "("], "not a regular expression"),
        (["--data", "{tree}", "--metadata", "{tree}/none.csv"], "none.csv"),
    ],
)
def test_what_cannot_be_audited_is_one_line_and_status_2(arguments, message, tree, capsys):
    arguments = [argument.replace("{tree}", str(tree)) for argument in arguments]
    assert main(["audit", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize("arguments", [[], ["--data", "x", "--classes", "a,a"], ["--nonsense"]])
def test_usage_is_status_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["audit", *arguments])
    assert stopped.value.code == 2


def test_the_folder_is_by_default_named_after_the_data(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "--data", str(tree)]) == 0
    assert (tmp_path / "results" / "audit" / "set" / "audit.csv").is_file()
    assert main(["audit", "--data", str(tree), "--results", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "audit" / "audit.csv").is_file()


def test_classes_and_their_order_can_be_named(tree, tmp_path, shortcuts):
    (tree / "train" / "OTHER").mkdir()
    (tree / "train" / "OTHER" / "1.png").write_bytes(drawn(99))
    out = tmp_path / "out"
    arguments = ["--data", str(tree), "--out", str(out)]
    assert main(["audit", *arguments, "--classes", "COVID, OTHER, NORMAL"]) == 0
    classes = ["COVID", "OTHER", "NORMAL"]
    assert json.loads((out / "audit.json").read_text())["data"]["classes"] == classes
    ((audited, *_),) = shortcuts
    assert audited.classes == tuple(classes)


def test_a_written_split_keeps_copies_together_and_opens_data_that_have_none(tmp_path):
    files = {}
    for seed in range(40):
        image = draw_radiograph(np.random.default_rng(seed), SIDE).image
        stem = f"{'NORMAL' if seed < 20 else 'COVID'}/{seed}"
        files[f"{stem}.png"] = encoded(image)
        if seed % 20 < 4:
            files[f"{stem}-mirrored.png"] = encoded(image[:, ::-1])
    data = as_folder(files, tmp_path / "flat")
    splits = tmp_path / "splits.csv"
    arguments = ["--data", str(data), "--write-splits", str(splits), "--out", str(tmp_path / "out")]
    assert main(["audit", *arguments]) == 0
    table = open_dataset(data, splits_file=splits).table
    split = dict(zip(table["path"], table["split"], strict=True))
    for path in split:
        assert split[path] == split[path.replace("-mirrored", "")]
    assert set(split.values()) == {"train", "val", "test"}


def test_controls_are_made_only_where_asked_for(tree, tmp_path, monkeypatch):
    def controls_table(seed, progress):
        return pd.DataFrame({"control": ["a"], "auc": [seed]})

    monkeypatch.setattr(command, "controls_table", controls_table)
    out = tmp_path / "out"
    arguments = ["audit", "--data", str(tree), "--out", str(out), "--seed", "7"]
    main(arguments)
    assert not (out / "controls.csv").exists()
    main([*arguments, "--controls"])
    assert pd.read_csv(out / "controls.csv").to_dict("records") == [{"control": "a", "auc": 7}]


def test_a_run_is_judged_with_its_data_and_its_models(small_run, tmp_path):
    folder, _, _ = small_run
    drawn = next((folder / ".cache").glob("phantoms-*"))
    request = command.Request(data=drawn, results=folder / "made")
    findings = {finding.check: finding for finding in command.audit(request).findings}
    for check in protocol.DATA_RULES:
        assert findings[check].verdict == "pass", findings[check]
    for stage in ("baseline", "fine_tuned"):
        assert findings[f"{stage}: without the lungs"].found == "24 images"


def test_a_split_of_other_data_is_a_breach_and_no_refusal(tree, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "splits.csv").write_text("path,label,split,fingerprint\na.png,0,test,x\n")
    (tmp_path / "run" / "run.json").write_text('{"data": "0123456789abcdef"}')
    arguments = ["--data", str(tree), "--results", str(tmp_path / "run")]
    assert main(["audit", *arguments]) == 1
    findings = pd.read_csv(tmp_path / "run" / "audit" / "audit.csv").set_index("check")
    assert findings.loc["data and splits unchanged since training", "verdict"] == "fail"


def test_a_console_of_few_letters_does_not_stop_an_audit(tree, tmp_path):
    image = (tree / "train" / "COVID" / "COVID-1.png").read_bytes()
    (tree / "test" / "COVID" / "рентген.png").write_bytes(image)
    done = subprocess.run(
        [sys.executable, "-m", "covid_lab", "audit", "--data", tree, "--out", tmp_path / "out"],
        cwd=PROJECT,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        encoding="cp1252",
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "\\u0440\\u0435\\u043d" in done.stdout
    assert "рентген.png" in (tmp_path / "out" / "audit.csv").read_text("utf-8")


# ---- findings as text, and checklists -----------------------------------------------------------


def test_the_table_fits_a_narrow_and_a_wide_terminal(monkeypatch):
    findings = [
        Finding("data", "copies", "fail", "three " * 30, 0.5, 0.4, 0.6, 10),
        Finding("data", "patients", "not applicable", "no names"),
    ]
    for width in (80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = command._as_text(findings).splitlines()
        assert max(map(len, lines)) <= width
        assert "0.500 (0.400–0.600), n = 10" in "\n".join(lines)
        assert any("no names" in line for line in lines)


def test_a_figure_states_its_interval_and_number_where_there_are_any():
    finding = Finding("data", "a", "pass", "", 0.25, 0.2, 0.3, 1000)
    assert figure(finding) == "0.250 (0.200–0.300), n = 1,000"
    assert figure(dataclasses.replace(finding, low=None, high=None)) == "0.250, n = 1,000"
    assert figure(dataclasses.replace(finding, n=None)) == "0.250 (0.200–0.300)"
    assert figure(Finding("data", "a", "pass", "")) == ""


def test_every_checklist_item_names_checks_that_exist(tree):
    audit = data_checks.audit_data(open_dataset(tree))
    known = {finding.check for finding in audit.findings}
    known |= {*protocol.RULES, *protocol.DATA_RULES, "shortcuts"}
    assert {check for item in ITEMS for check in item.checks} <= known
    numbers = [(item.checklist, item.number) for item in ITEMS]
    assert len(set(numbers)) == len(numbers)


def test_an_item_has_the_gravest_answer_of_its_checks():
    findings = [
        Finding("data", "no image twice, in two splits", "pass", ""),
        Finding("data", "no patient in two splits", "fail", ""),
        Finding("data", "every image can be read", "not applicable", "why"),
        Finding("shortcuts", "the border", "warn", ""),
    ]
    table = answers(findings).set_index(["checklist", "item"])
    assert list(answers([])) == checklists.COLUMNS
    assert table.loc[("REFORMS", "6b"), "answer"] == "fail"
    assert (
        table.loc[("CLAIM 2024", "20"), "answered_by"]
        == "no image twice, in two splits; no patient in two splits"
    )
    assert table.loc[("REFORMS", "6c"), "answer"] == "warn"
    assert table.loc[("CLAIM 2024", "35"), "answer"] == "not applicable"
    assert worst(findings) == "fail"
    assert worst([]) == "not applicable"
    assert as_table(findings)["check"].tolist() == [finding.check for finding in findings]
