"""What a command line names: inputs, names of results, clashes, the order, and what is done already."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from seesr.batch import plan as planning
from seesr.batch.find import Inputs
from seesr.batch.job import Job, Options, Row
from seesr.batch.naming import Naming
from seesr.batch.plan import Plan
from seesr.batch.report import Report, path_of, settings_of
from seesr.settings import Settings
from tests.batch.photographs import write_photographs


def make_plan(*paths: Path | str, model: str | None = "model", **more: Any) -> tuple[Plan, dict[str, Report]]:
    options = Options(paths=[str(path) for path in paths], **more)
    naming = Naming(options)
    inputs = Inputs(options, naming)
    reports = {root: Report(path_of(root, options)) for root in inputs.roots}
    for report in reports.values():
        report.load()
    return Plan(options, inputs, naming, reports, model), reports


def planned(folder: Path, *paths: Path | str, **more: Any) -> dict[str, str]:
    """Input -> output of all jobs, relative to `folder`."""
    jobs = make_plan(*paths, **more)[0].jobs()
    return {os.path.relpath(job.input, folder): os.path.relpath(job.output, folder) for job in jobs}


def finish(jobs: list[Job], reports: dict[str, Report], settings: Settings) -> None:
    """What a run that does these jobs leaves."""
    for job in jobs:
        Path(job.output).parent.mkdir(parents=True, exist_ok=True)
        Path(job.output).write_bytes(b"result")
        sha256 = hashlib.sha256(Path(job.input).read_bytes()).hexdigest()
        row = Row(input=job.input, bytes=job.bytes, sha256=sha256, output=job.output, modified=job.modified)
        row |= Row(settings=settings_of(settings), model="model", output_bytes=len(b"result"))
        with reports[job.root] as report:
            report.append(row)


def test_a_folder_is_taken_with_all_below_but_nothing_hidden_and_no_other_files(tmp_path: Path) -> None:
    names = ["a.jpg", "B.JPEG", "ü ö/日本.PNG", "line\nbreak.tif", "deep/er/c.webp", ".hidden.jpg", ".git/d.jpg"]
    write_photographs(tmp_path, names)
    (tmp_path / "notes.txt").write_text("no image")
    assert planned(tmp_path, tmp_path) == {
        "a.jpg": "a_upscaled.png",
        "B.JPEG": "B_upscaled.png",
        "ü ö/日本.PNG": "ü ö/日本_upscaled.png",
        "line\nbreak.tif": "line\nbreak_upscaled.png",
        "deep/er/c.webp": "deep/er/c_upscaled.png",
    }
    assert not (tmp_path / "report.jsonl").exists()


def test_out_keeps_the_structure_and_the_names(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["in/a.jpg", "in/deep/a.jpg", "other/a.jpg", "b.jpg"])
    out, settings = str(tmp_path / "out"), Settings(output_format="webp", scale_factor=2)
    assert planned(tmp_path, tmp_path / "in", out=out, settings=settings) == {
        "in/a.jpg": "out/a.webp",
        "in/deep/a.jpg": "out/deep/a.webp",
    }
    several = (tmp_path / "in", tmp_path / "other", tmp_path / "b.jpg")
    assert planned(tmp_path, *several, out=out, name="{stem}_x{scale:g}.{ext}", settings=settings) == {
        "in/a.jpg": "out/in/a_x2.jpg.webp",
        "in/deep/a.jpg": "out/in/deep/a_x2.jpg.webp",
        "other/a.jpg": "out/other/a_x2.jpg.webp",
        "b.jpg": "out/b_x2.jpg.webp",
    }


def test_a_folder_for_results_within_the_inputs_holds_no_inputs(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["a.jpg", "out/a.png", "out/deep/b.png"])
    assert planned(tmp_path, tmp_path, out=str(tmp_path / "out")) == {"a.jpg": "out/a.png"}


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photographs(tmp_path, ["a/1.jpg", "a/2.png", "a/b/3.jpg", "c/4.jpg", "[5].jpg"])
    monkeypatch.chdir(tmp_path)
    assert planned(tmp_path, "a/*.jpg") == {"a/1.jpg": "a/1_upscaled.png"}
    assert planned(tmp_path, "a/**", out="o") == {"a/1.jpg": "o/1.png", "a/2.png": "o/2.png", "a/b/3.jpg": "o/b/3.png"}
    assert planned(tmp_path, "[5].jpg", "[ac]") == {
        "[5].jpg": "[5]_upscaled.png",
        "a/1.jpg": "a/1_upscaled.png",
        "a/2.png": "a/2_upscaled.png",
        "a/b/3.jpg": "a/b/3_upscaled.png",
        "c/4.jpg": "c/4_upscaled.png",
    }


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["in/z/a.jpg", "elsewhere/b.jpg"])
    (tmp_path / "in/a link").symlink_to("z")
    (tmp_path / "in/z/loop").symlink_to("..")
    (tmp_path / "in/far").symlink_to("../elsewhere")
    (tmp_path / "in/c.jpg").symlink_to("z/a.jpg")
    (tmp_path / "in/lost.jpg").symlink_to("nowhere")
    assert planned(tmp_path, tmp_path / "in", tmp_path / "in/z/a.jpg") == {
        "in/z/a.jpg": "in/z/a_upscaled.png",
        "in/far/b.jpg": "in/far/b_upscaled.png",
        "in/c.jpg": "in/c_upscaled.png",
        "in/lost.jpg": "in/lost_upscaled.png",
    }


@pytest.mark.parametrize(
    ("names", "more", "sentence"),
    [
        (["a.jpg", "a.png"], {}, r"a\.jpg and \S*a\.png would both become \S*a_upscaled\.png; name results otherwise"),
        (["a.jpg", "a.png"], {"name": "{stem}"}, r"the result of \S*a\.jpg would overwrite the input \S*/a\.png; "),
        (["a.png"], {"name": "{stem}"}, r"the result of \S*a\.png would overwrite itself; name results otherwise"),
        (["a.jpg", "b.jpg"], {"name": "x"}, r"a\.jpg and \S*b\.jpg would both become \S*x\.png"),
        (["b/a.png", "a.jpg"], {"out": "b", "name": "{stem}"}, None),
    ],
)
def test_names_that_clash_are_refused(tmp_path: Path, names: list[str], more: dict, sentence: str | None) -> None:
    write_photographs(tmp_path, names)
    more = more | ({"out": str(tmp_path / more["out"])} if "out" in more else {})
    if sentence is None:
        assert planned(tmp_path, tmp_path, **more) == {"a.jpg": "b/a.png"}
        return
    with pytest.raises(ValueError, match=sentence):
        planned(tmp_path, tmp_path, **more)
    assert planned(tmp_path, tmp_path, **more | {"name": "{stem}_{ext}_x{scale:g}"})  # as the sentence advises


@pytest.mark.parametrize(
    ("paths", "more", "sentence"),
    [
        (["photos"], {"out": "link"}, r"photos/a\.png would overwrite itself"),
        (["photos"], {"out": "link/sub/.."}, r"photos/a\.png would overwrite itself"),
        (["photos/a.png"], {"output": "link/a.png"}, r"photos/a\.png would overwrite itself"),
        (["in"], {"out": "photos"}, r"in/a\.png would overwrite itself"),
        (["photos/sub/c.jpg", "in"], {"out": "photos", "name": "a"}, r"would overwrite the input \S*in/a\.png"),
        (["photos/b.jpg", "link/b.png"], {}, r"link/b\.png would both become \S*link/b_upscaled\.png"),
    ],
)
def test_links_hide_no_clash(tmp_path: Path, paths: list[str], more: dict, sentence: str) -> None:
    write_photographs(tmp_path, ["photos/a.png", "photos/b.jpg", "photos/b.png", "photos/sub/c.jpg"])
    (tmp_path / "link").symlink_to("photos")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").symlink_to("../photos/a.png")
    (tmp_path / "photos/b.png").unlink() if paths == ["photos"] else None
    places = {name: str(tmp_path / value) if name != "name" else value for name, value in more.items()}
    with pytest.raises(ValueError, match=sentence):
        planned(tmp_path, *(tmp_path / path for path in paths), **places)


def test_a_result_may_take_the_place_of_a_link(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["in/a.png", "elsewhere/a.png"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").symlink_to("../in/a.png")
    assert planned(tmp_path, tmp_path / "in", out=str(tmp_path / "out")) == {"in/a.png": "out/a.png"}


@pytest.mark.parametrize(
    ("names", "more", "sentence"),
    [
        (["photo.PNG"], {"name": "{stem}"}, r"photo\.PNG would overwrite itself"),
        (["A.jpg", "a.png"], {"out": "o"}, r"A\.jpg and \S*a\.png would both become"),
        (["\u00e4.jpg", "a\u0308.png"], {"out": "o"}, r"would both become"),
    ],
)
def test_case_does_not_count_where_the_storage_ignores_it(
    tmp_path: Path, names: list[str], more: dict, sentence: str
) -> None:
    write_photographs(tmp_path / "in", names)
    more = more | ({"out": str(tmp_path / "o")} if "out" in more else {})
    assert len(planned(tmp_path, tmp_path / "in", **more)) == len(names)
    for folder in (tmp_path / "in", tmp_path / "o"):  # the name of the lock, as such a storage understands it
        folder.mkdir(exist_ok=True)
        (folder / ".REPORT.LOCK").touch()
    with pytest.raises(ValueError, match=sentence):
        planned(tmp_path, tmp_path / "in", **more)


def test_a_folder_under_two_names_is_done_once(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["in/a.jpg", "in/sub/b.jpg"])
    (tmp_path / "link").symlink_to("in")
    wanted = {"in/a.jpg": "in/a_upscaled.png", "in/sub/b.jpg": "in/sub/b_upscaled.png"}
    assert planned(tmp_path, tmp_path / "in", tmp_path / "link") == wanted
    assert planned(tmp_path, tmp_path / "in", tmp_path / "in/sub") == wanted
    assert planned(tmp_path, tmp_path / "in/sub", tmp_path / "in", tmp_path / "link/a.jpg") == wanted


@pytest.mark.parametrize("path", ["nowhere.jpg", "no*.jpg", "nowhere/**"])
def test_a_path_that_names_nothing_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match=r"PATH must .*, got .*no.*"):
        planned(tmp_path, tmp_path / path)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("zip://in::file:///x.zip", "without ::, got zip://in::file:///x.zip"),
        ("simplecache::s3://bucket/in", "without ::, got simplecache::s3://bucket/in"),
        ("ftp://me:secret@host/in", "without a password, got ftp://\\.\\.\\.@host/in; "),
        ("zip://x::ftp://me:se:c@ret@host/in", "without a password"),
    ],
)
def test_addresses_that_would_be_misread_or_tell_a_password_are_refused(path: str, sentence: str) -> None:
    for options in (Options([path]), Options(["."], out=path), Options(["."], output=path)):
        with pytest.raises(ValueError, match=sentence) as refused:
            Inputs(options, Naming(options))
        assert "secret" not in str(refused.value)
        assert "ret@" not in str(refused.value)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{stem}_{size}", r"may hold {stem}, {scale} and {ext}, with a format such as {scale:g}, got {size}; write"),
        ("{stem", r"--name may hold .*, got '{stem' \(expected '}'"),
        ("{}", "--name may hold"),
        ("{stem.__class__}", "--name may hold"),
        ("{stem:d}", "--name may hold"),
        ("{scale:99999999999d}", "--name may hold"),
        ("a/{stem}", "without folders, got 'a/{stem}'; see --out"),
        ("{stem}.png", "without the ending, which --output-format sets"),
        (" ", "--name must give names of files"),
        ("..", "--name must give names of files"),
    ],
)
def test_templates_that_give_no_names_are_refused(template: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Naming(Options(paths=["a"], name=template))


def test_a_template_with_the_scale_needs_one() -> None:
    with pytest.raises(ValueError, match="needs --scale-factor, got --target-long-side"):
        Naming(Options(paths=["a"], name="{stem}_{scale}", settings=Settings(target_long_side=100)))


def test_results_of_earlier_runs_are_no_inputs(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["a.jpg", "a_upscaled.png", "a_upscaled_upscaled.png", "b_upscaled.jpg"])
    mine = {"a.jpg": "a_upscaled.png", "b_upscaled.jpg": "b_upscaled_upscaled.png"}
    assert planned(tmp_path, tmp_path) == mine
    assert planned(tmp_path, *sorted(tmp_path.iterdir())) == mine
    alone = {"a_upscaled.png": "a_upscaled_upscaled.png"}
    assert planned(tmp_path, tmp_path / "a_upscaled.png") == alone


def test_what_is_left_out_as_a_result_is_counted(tmp_path: Path) -> None:
    paths = write_photographs(tmp_path, ["cat.jpg", "cat_upscaled.jpg", "dog.jpg"])
    for words in (paths, [tmp_path], [tmp_path, *paths]):
        plan, _ = make_plan(*words)
        assert [Path(found.name).name for found in plan.found] == ["cat.jpg", "dog.jpg"]
        assert plan.notes == ["1 results of earlier runs are left out; give one alone to upscale it again"]
    plan, reports = make_plan(paths[2])
    finish(list(plan.jobs()), reports, Settings())
    paths[1].unlink()
    assert make_plan(tmp_path)[0].notes == [], "the report names it"


def test_results_are_known_through_a_link(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["photos/a.jpg"])
    (tmp_path / "link").symlink_to("photos")
    for name in ("{stem}_x2", "b"):
        more = {"out": str(tmp_path / "link"), "name": name}
        plan, reports = make_plan(tmp_path / "photos", **more)
        finish(list(plan.jobs()), reports, Settings())
        again, _ = make_plan(tmp_path / "photos", **more)
        assert [Path(found.name).name for found in again.found] == ["a.jpg"]


def test_a_link_that_leads_to_itself_is_no_folder(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["a.jpg"])
    for name in ("loop", "loop.jpg"):
        (tmp_path / name).symlink_to(name)
    assert planned(tmp_path, tmp_path) == {"a.jpg": "a_upscaled.png", "loop.jpg": "loop_upscaled.png"}


def test_results_that_a_report_names_are_no_inputs(tmp_path: Path) -> None:
    settings = Settings()
    write_photographs(tmp_path, ["a.jpg", "below/b.jpg"])
    for folder in (tmp_path / "below", tmp_path):
        plan, reports = make_plan(folder, name="{stem} large")
        finish(list(plan.jobs()), reports, settings)
    assert (tmp_path / "below/b large.png").exists()
    assert planned(tmp_path, tmp_path, force=True) == {"a.jpg": "a_upscaled.png", "below/b.jpg": "below/b_upscaled.png"}


def test_the_largest_of_each_chunk_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, side in enumerate([20, 40, 30, 30, 40, 20]):
        write_photographs(tmp_path, [f"{number}.png"], side)
    (tmp_path / "6.png").write_bytes(b"no image")
    monkeypatch.setattr(planning, "CHUNK", 4)
    plan, _ = make_plan(tmp_path)
    jobs = list(plan.jobs())
    assert [Path(job.input).stem for job in jobs] == ["1", "2", "3", "0", "4", "5", "6"]
    assert [job.size for job in jobs[:3]] == [(40, 40), (30, 30), (30, 30)]
    assert jobs[-1].size is None
    assert plan.total_megapixels == pytest.approx(16 * (2 * 400 + 2 * 900 + 2 * 1600) / 1e6)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (job,) = make_plan(tmp_path)[0].jobs()
    assert job.size is None


def test_what_is_done_is_skipped_unless_something_changed(tmp_path: Path) -> None:
    path, _ = write_photographs(tmp_path, ["a.png", "b.png"])
    settings = Settings(seed=1)

    def left(model: str | None = "model", **more: Any) -> list[str]:
        plan, _ = make_plan(tmp_path, model=model, **{"settings": settings} | more)
        jobs = [Path(job.input).name for job in plan.jobs()]
        assert plan.skipped == 2 - len(jobs)
        return sorted(jobs)

    plan, reports = make_plan(tmp_path, settings=settings)
    finish(list(plan.jobs()), reports, settings)
    assert left() == []
    assert left(force=True) == left(model="other") == left(settings=Settings(seed=2)) == ["a.png", "b.png"]
    assert left(out=str(tmp_path / "o")) == left(name="{stem}_2") == ["a.png", "b.png"]
    assert left(model=None) == []

    os.utime(path, (1, 1))
    assert left() == []
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    assert left() == ["a.png"]
    path.write_bytes(content)
    assert left() == []
    (tmp_path / "b_upscaled.png").unlink()
    assert left() == ["b.png"]


@pytest.mark.parametrize("content", [b"", b"resul", b"results"])
def test_a_damaged_result_is_done_again(tmp_path: Path, content: bytes) -> None:
    write_photographs(tmp_path, ["a.png"])
    plan, reports = make_plan(tmp_path)
    finish(list(plan.jobs()), reports, Settings())
    assert planned(tmp_path, tmp_path) == {}
    (tmp_path / "a_upscaled.png").write_bytes(content)
    assert planned(tmp_path, tmp_path) == {"a.png": "a_upscaled.png"}
    report = tmp_path / "report.jsonl"
    report.write_text(report.read_text().replace(', "output_bytes": 6', ""))
    assert planned(tmp_path, tmp_path) == {}, "older reports do not tell"


def test_each_result_of_an_image_is_remembered(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["a.png"])
    for scale in (1, 2):
        more = {"settings": Settings(scale_factor=scale), "name": "{stem}_x{scale:g}"}
        plan, reports = make_plan(tmp_path, **more)
        finish(list(plan.jobs()), reports, more["settings"])
        (again,) = [make_plan(tmp_path, **more)[0]]
        assert list(again.jobs()) == []
    first = {"settings": Settings(scale_factor=1), "name": "{stem}_x{scale:g}"}
    assert planned(tmp_path, tmp_path, **first) == {}


def test_what_a_run_on_a_folder_below_did_is_done(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["a.png", "sub/b.png", "sub/deep/c.png"])
    plan, reports = make_plan(tmp_path / "sub")
    finish(list(plan.jobs()), reports, Settings())
    for paths in ([tmp_path], [tmp_path, tmp_path / "sub"]):
        assert planned(tmp_path, *paths) == {"a.png": "a_upscaled.png"}
    (tmp_path / "sub/deep/c_upscaled.png").write_bytes(b"")
    wanted = {"a.png": "a_upscaled.png", "sub/deep/c.png": "sub/deep/c_upscaled.png"}
    assert planned(tmp_path, tmp_path) == wanted


def test_a_failed_image_is_done_again(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["a.png"])
    plan, reports = make_plan(tmp_path)
    (job,) = plan.jobs()
    finish([job], reports, Settings())
    with reports[job.root] as report:
        report.append(Row(input=job.input, bytes=job.bytes, error="no"))
    assert planned(tmp_path, tmp_path) == {"a.png": "a_upscaled.png"}


def test_an_unreadable_folder_is_told() -> None:
    before = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder, ["a.jpg", "locked/b.jpg"])
        folder.chmod(0o755)
        (folder / "locked").chmod(0)
        if before == 0:  # nothing is locked for root
            os.seteuid(65534)
        try:
            plan, _ = make_plan(folder, dry_run=True)
            with pytest.raises(ValueError, match=r"got '.*b\.jpg' \(Permission denied\)"):
                make_plan(folder / "locked/b.jpg")
        finally:
            os.seteuid(before)
            (folder / "locked").chmod(0o700)
    assert [Path(found.name).name for found in plan.found] == ["a.jpg"]
    (sentence,) = plan.notes
    assert sentence.endswith("/locked cannot be read (Permission denied) and is left out")


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["a.jpg", "b/c.jpg"])
    left = [tmp_path / ".seesr-x.part", tmp_path / "b/.seesr-y.part"]
    for path in left:
        path.touch()
    plan, _ = make_plan(tmp_path, dry_run=True)
    assert len(list(plan.jobs())) == 2
    assert all(path.exists() for path in left)
    plan, _ = make_plan(tmp_path)
    assert len(list(plan.jobs())) == 2
    assert not any(path.exists() for path in left)


def test_stop_ends_the_jobs(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["a.jpg", "b.jpg"])
    plan, _ = make_plan(tmp_path)
    jobs = plan.jobs()
    next(jobs)
    plan.stop()
    assert list(jobs) == []
