"""`check-config` says what `dev` and `serve` would: of the settings, and of the files that they name."""

import json
from pathlib import Path

import cyclopts
import pytest

from config.commands import main
from gateway import files


def test_check_config_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "s.toml"
    file.write_text('[client]\nping_intervall = "3s"\n')
    assert files.check_config(config=file) == 2
    assert "did you mean client.ping_interval?" in capsys.readouterr().err
    assert files.check_config(config=file, json=True) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert answer["mistakes"][0]["key"] == "client.ping_intervall"


def test_check_config_took_a_folder_and_did_not_look_at_it() -> None:
    app = cyclopts.App()
    app.command(files.check_config, name="check-config")
    assert main(app, ["check-config", "--dev", "--data", "."]) == 2


def test_check_config_shows_the_settings_without_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.toml"
    file.write_text('[http_api]\nkey = "hunter2"\n')
    assert files.check_config(for_dev=True, config=file) == 0
    assert capsys.readouterr().out == "The settings are fine.\n"
    assert files.check_config(for_dev=True, config=file, json=True) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert answer["settings"]["http_api"]["key"] == "**********"
    assert answer["settings"]["client"]["ping_interval"] == 25.0


def test_check_config_was_fine_with_files_that_serve_could_not_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder, stolen = tmp_path / "s.toml", tmp_path / "letters", tmp_path / "stolen.txt"
    file.write_text(f'[mail]\ntemplates = "{folder}"\n[auth]\nbreached_passwords = "{stolen}"\n')
    assert files.check_config(for_dev=True, config=file) == 2
    said = capsys.readouterr().err
    assert f"mail.templates: there is no folder {folder}" in said
    assert f"auth.breached_passwords: No such file or directory: {stolen}" in said
    (folder / "en").mkdir(parents=True)
    (folder / "en" / "verify_email.txt").write_text("Hello\n{{ nobody }}\n")
    stolen.write_text("no hash\n")
    app = cyclopts.App()
    app.command(files.check_config, name="check-config")
    assert main(app, ["check-config", "--dev", "--config", str(file), "--json"]) == 2
    mistakes = json.loads(capsys.readouterr().out)["mistakes"]
    assert [one["key"] for one in mistakes] == ["mail.templates", "auth.breached_passwords"]
    assert "'nobody' is undefined" in mistakes[0]["message"]
    assert f"no sorted lines of SHA1:count in {stolen}" in mistakes[1]["message"]
    stolen.write_text(f"{'0' * 40}:1\n{'F' * 40}:1\n")
    (folder / "en" / "verify_email.txt").unlink()
    assert files.check_config(for_dev=True, config=file) == 0
