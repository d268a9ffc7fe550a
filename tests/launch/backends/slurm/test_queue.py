"""States of jobs from the output of scontrol and sacct, as printed by versions 22.05 and 23.11."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.backends.jobs import JobState
from launch.backends.slurm import queue as slurm_queue
from launch.backends.slurm.queue import state

UNKNOWN = "slurm_load_jobs error: Invalid job id specified\n"
LINE_2205 = (
    "JobId={id} JobName={name} UserId={user}(1000) GroupId={group}(513) MCS_label=N/A Priority=4294901732 Nice=0 "
    "Account=project-7 QOS=normal JobState={state} Reason={reason} Dependency=(null) Requeue=1 Restarts={restarts} "
    "BatchFlag=1 Reboot=0 ExitCode={code} RunTime={run_time} TimeLimit=1-00:00:00 TimeMin=N/A "
    "SubmitTime=2026-11-21T07:04:42 EligibleTime=2026-11-21T07:04:44 AccrueTime=2026-11-21T07:06:43 "
    "StartTime=2026-11-21T07:04:44 EndTime=2026-11-22T07:04:44 Deadline=N/A SuspendTime=None SecsPreSuspend=0 "
    "LastSchedEval=2026-11-21T07:04:44 Scheduler=Main Partition=dev AllocNode:Sid=login:19162 ReqNodeList=(null) "
    "ExcNodeList=(null) NodeList={nodes} BatchHost=n1 NumNodes=2 NumCPUs=2 NumTasks=2 CPUs/Task=1 ReqB:S:C:T=0:0:*:* "
    "TRES=cpu=2,mem=5422M,node=2,billing=2 Socks/Node=* NtasksPerN:B:S:C=1:0:*:* CoreSpec=* MinCPUsNode=1 "
    "MinMemoryCPU=2711M MinTmpDiskNode=0 Features=(null) DelayBoot=00:00:00 OverSubscribe=OK Contiguous=0 "
    "Licenses=(null) Network=(null) Command={folder}/submit/.submission_file_eac78d0801564bdebde5db44d021d820.sh "
    "WorkDir={folder}{comment} StdErr={folder}/submit/28_0_log.err StdIn=/dev/null "
    "StdOut={folder}/submit/28_0_log.out Power= "
)
LINE_2311 = (
    "JobId={id} JobName={name} UserId={user}(1000) GroupId={group}(513) MCS_label=N/A Priority=1 Nice=0 "
    "Account=project-7 QOS=normal WCKey=submitit JobState={state} Reason={reason} Dependency=afterok:27(unfulfilled) "
    "Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode={code} RunTime={run_time} TimeLimit=1-00:00:00 "
    "TimeMin=N/A SubmitTime=2026-11-21T07:04:42 EligibleTime=2026-11-21T07:04:44 AccrueTime=2026-11-21T07:06:43 "
    "StartTime=2026-11-21T07:04:44 EndTime=2026-11-22T07:04:44 Deadline=N/A SuspendTime=None SecsPreSuspend=0 "
    "LastSchedEval=2026-11-21T07:04:44 Scheduler=Backfill Partition=dev AllocNode:Sid=login:19162 ReqNodeList=(null) "
    "ExcNodeList=(null) NodeList={nodes} SchedNodeList=n[3-4] BatchHost=n1 NumNodes=2 NumCPUs=2 NumTasks=2 CPUs/Task=1 "
    "ReqB:S:C:T=0:0:*:* ReqTRES=cpu=2,mem=5422M,node=2,billing=2 AllocTRES=cpu=2,mem=5422M,node=2,billing=2 "
    "Socks/Node=* NtasksPerN:B:S:C=1:0:*:* CoreSpec=* MinCPUsNode=1 MinMemoryCPU=2711M MinTmpDiskNode=0 "
    "Features=(null) DelayBoot=00:00:00 OverSubscribe=OK Contiguous=0 Licenses=(null) Network=(null) "
    "Command={folder}/submit/.submission_file_eac78d0801564bdebde5db44d021d820.sh WorkDir={folder}{comment} "
    "StdErr={folder}/submit/28_0_log.err StdIn=/dev/null StdOut={folder}/submit/28_0_log.out "
    "TresPerNode=gres/gpu:2 MailUser=a@example.org MailType=END "
)
LINES = pytest.mark.parametrize("line", [LINE_2205, LINE_2311], ids=["22.05", "23.11"])
USUAL = {
    "id": "28", "name": "tiny", "user": "ada", "group": "ada", "state": "RUNNING", "reason": "None", "restarts": "0",
    "code": "0:0", "run_time": "00:00:00", "nodes": "n[1-2]", "folder": "/srv/runs/tiny/code", "comment": "",
}  # fmt: skip


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let scontrol and sacct print texts: ``slurm(scontrol=text, sacct=text)``; without text, they know no job."""

    def answer(scontrol: str = "", sacct: str = "", error: str = UNKNOWN, sacct_code: int = 0) -> list[tuple[str, ...]]:
        commands: list[tuple[str, ...]] = []

        def ask(*command: str) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            if command[0] == "sacct":
                return subprocess.CompletedProcess(command, sacct_code, sacct, "")
            return subprocess.CompletedProcess(command, 0 if scontrol else 1, scontrol, "" if scontrol else error)

        monkeypatch.setattr(slurm_queue, "_ask", ask)
        return commands

    return answer


def lines(line: str, *values: dict[str, str]) -> str:
    return "".join(line.format(**USUAL | value) + "\n" for value in values)


# --- scontrol


@LINES
def test_a_running_job(line: str, slurm: Any) -> None:
    commands = slurm(lines(line, {"run_time": "1-02:03:04", "restarts": "2"}))
    assert state("28") == JobState(state="RUNNING", nodes="n[1-2]", restarts=2, seconds=93_784)
    assert state("28").active
    assert set(commands) == {("scontrol", "show", "job", "--oneliner", "28")}


@LINES
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"state": "PENDING", "reason": "Resources", "nodes": ""}, JobState(state="PENDING", reason="Resources")),
        ({"state": "PENDING", "reason": "BeginTime", "nodes": "(null)"}, JobState(state="PENDING", reason="BeginTime")),
        ({"state": "COMPLETED", "run_time": "00:01:05"}, JobState(state="COMPLETED", nodes="n[1-2]", seconds=65)),
        (
            {"state": "FAILED", "reason": "NonZeroExitCode", "code": "3:0"},
            JobState(state="FAILED", reason="NonZeroExitCode", exit_code=3, nodes="n[1-2]"),
        ),
        ({"state": "FAILED", "code": "0:9"}, JobState(state="FAILED", exit_code=137, nodes="n[1-2]")),
        ({"state": "CANCELLED", "code": "0:15"}, JobState(state="CANCELLED", exit_code=143, nodes="n[1-2]")),
        ({"run_time": "UNLIMITED", "reason": ""}, JobState(state="RUNNING", nodes="n[1-2]")),
    ],
)
def test_states(line: str, values: dict[str, str], expected: JobState, slurm: Any) -> None:
    slurm(lines(line, values))
    assert state("28") == expected


@LINES
def test_a_preemption_counts_only_since_the_start(line: str, slurm: Any) -> None:
    for time, expected in (("None", False), ("2026-11-21T07:05:00", True), ("2026-11-21T06:00:00", False)):
        slurm(lines(line.replace("Deadline=N/A", f"Deadline=N/A PreemptEligibleTime=None PreemptTime={time}"), {}))
        assert slurm_queue.preempted("28") is expected
    slurm(lines(line, {}))  # a cluster without preemption
    assert not slurm_queue.preempted("28")
    slurm(error="Connection timed out")
    assert not slurm_queue.preempted("28")


HOSTILE = [
    "two words", "x JobState=COMPLETED ExitCode=9:9", "a=b", "=", "NodeList=n9 Restarts=7", "x UserId=1", "é 漢\u2028x",
    "WorkDir=/elsewhere y", "x Command=y", "(1) GroupId=", "'\"$(x)`", "Reason=Hacked RunTime=9-00:00:00",
]  # fmt: skip


@LINES
@pytest.mark.parametrize("name", HOSTILE)
def test_names_and_paths_may_contain_field_names(line: str, name: str, slurm: Any) -> None:
    folder = f"/srv/my runs/{name}/code"
    values = {"name": name, "folder": folder, "comment": f" Comment={name}", "state": "FAILED", "code": "3:0"}
    slurm(lines(line, values))
    expected = JobState(state="FAILED", exit_code=3, nodes="n[1-2]")
    assert state("28") == expected
    assert state("28", folder) == expected
    assert state("28", "/srv/runs/another/code") == JobState(state="UNKNOWN")


@LINES
@given(name=st.text(st.characters(blacklist_categories=["Cc", "Cs"], blacklist_characters="/"), max_size=30))
def test_names_and_paths_may_contain_any_text(line: str, name: str) -> None:
    output = line.format(**USUAL | {"name": name, "folder": f"/srv/{name}/code", "state": "TIMEOUT", "nodes": "n7"})
    assert slurm_queue._of_scontrol(output) == JobState(state="TIMEOUT", nodes="n7")


@LINES
def test_users_and_groups_of_a_directory_service(line: str, slurm: Any) -> None:
    slurm(lines(line, {"user": "DOMAIN\\ada lovelace", "group": "domain users", "name": "x JobState=PENDING"}))
    assert state("28", "/srv/runs/tiny/code").state == "RUNNING"


@LINES
@pytest.mark.parametrize(
    ("folder", "same"),
    [
        ("/srv/runs/tiny/code", True), (None, True), ("/srv/runs/tiny", False), ("/srv/runs/tiny/code/x", False),
        ("/runs/tiny/code", False), ("", False),
    ],
)  # fmt: skip
def test_a_job_in_another_folder_is_another_job(line: str, folder: str | None, same: bool, slurm: Any) -> None:
    slurm(lines(line, {}), sacct="COMPLETED|0:0|n1|5|/srv/runs/tiny/code\n")
    assert state("28", folder) == (JobState(state="RUNNING", nodes="n[1-2]") if same else JobState(state="UNKNOWN"))


def test_a_job_started_by_srun_has_no_log_files(slurm: Any) -> None:
    line = lines(LINE_2205, {}).partition(" StdErr=")[0]
    for end in (" Power= \n", "\n", " \n"):
        slurm(line + end)
        assert state("28", "/srv/runs/tiny/code").state == "RUNNING"


@pytest.mark.parametrize(
    "message",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "scontrol: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\nscontrol: fatal: Could not "
        "establish a configuration source",
        "scontrol is not installed here",
        "",
    ],
)
def test_a_query_without_an_answer_is_an_error(message: str, slurm: Any) -> None:
    commands = slurm(error=message, sacct="COMPLETED|0:0|n1|5|/x\n")
    with pytest.raises(RuntimeError) as error:
        state("28")
    assert str(error.value) == f"no answer from SLURM about job 28: {' '.join(message.split())}"
    assert [command[0] for command in commands] == ["scontrol"]


# --- arrays


@LINES
@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (
            ["RUNNING 0:0", "COMPLETED 0:0", "FAILED 1:0", "PENDING 0:0"],
            ("RUNNING", 0, "2 tasks of the array have ended"),
        ),
        (["PENDING 0:0", "COMPLETED 0:0"], ("PENDING", 0, "1 tasks of the array have ended")),
        (["PENDING 0:0", "COMPLETING 0:0"], ("PENDING", 0, "0 tasks of the array have ended")),
        (["COMPLETED 0:0", "COMPLETED 0:0"], ("COMPLETED", 0, "")),
        (["COMPLETED 0:0", "FAILED 1:0", "FAILED 3:0", "COMPLETED 0:0"], ("FAILED", 3, "")),
        (["FAILED 2:0", "FAILED 0:9"], ("FAILED", 137, "")),
        (["CANCELLED 0:0", "COMPLETED 0:0"], ("CANCELLED", 143, "")),
        (["TIMEOUT 0:0", "COMPLETED 0:0"], ("TIMEOUT", 124, "")),
    ],
)
def test_states_of_an_array_are_combined(
    line: str, tasks: list[str], expected: tuple[str, int, str], slurm: Any
) -> None:
    parts = [dict(zip(("state", "code"), task.split(), strict=True)) for task in tasks]
    slurm(lines(line, *parts))
    job = state("28", "/srv/runs/tiny/code")
    assert (job.state, 0 if job.active else job.result, job.reason) == expected
    sacct = "".join(f"{part['state']}|{part['code']}|n1|5|/srv/runs/tiny/code\n" for part in parts)
    slurm(sacct=sacct)
    job = state("28", "/srv/runs/tiny/code")
    assert (job.state, 0 if job.active else job.result, job.reason) == expected


# --- sacct


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("COMPLETED|0:0|n[1-2]|9|/srv/x", JobState(state="COMPLETED", nodes="n[1-2]", seconds=9)),
        ("FAILED|3:0|n1|8|/srv/x", JobState(state="FAILED", exit_code=3, nodes="n1", seconds=8)),
        ("FAILED|0:9|n1|8|/srv/x", JobState(state="FAILED", exit_code=137, nodes="n1", seconds=8)),
        ("CANCELLED by 1000|0:15|n1|4|/srv/x", JobState(state="CANCELLED", exit_code=143, nodes="n1", seconds=4)),
        ("CANCELLED by 0|0:0|None assigned|0|", JobState(state="CANCELLED")),
        ("NODE_FAIL|1:0|n2|1|/srv/x", JobState(state="NODE_FAIL", exit_code=1, nodes="n2", seconds=1)),
        ("PENDING|0:0|None assigned|0|/srv/x", JobState(state="PENDING")),
        ("OUT_OF_MEMORY|0:125|n1||/srv/x", JobState(state="OUT_OF_MEMORY", exit_code=253, nodes="n1")),
    ],
)
def test_a_row_of_sacct(row: str, expected: JobState, slurm: Any) -> None:
    commands = slurm(sacct=f"{row}\n")
    assert state("28") == state("28", "/srv/x") == expected
    assert commands[1][:1] == ("sacct",)
    assert commands[1][-4:] == ("--jobs", "28", "--format", "State,ExitCode,NodeList,ElapsedRaw,WorkDir")


def test_folders_in_sacct_may_contain_bars(slurm: Any) -> None:
    slurm(sacct="COMPLETED|0:0|n1|5|/srv/a|b\u2028c/code\n")
    assert state("28", "/srv/a|b\u2028c/code").state == "COMPLETED"
    assert state("28", "/srv/a").state == "UNKNOWN"


def test_a_job_that_slurm_does_not_know(slurm: Any) -> None:
    for answer in ({}, {"sacct_code": 1}, {"sacct": "garbage", "sacct_code": 1}):
        slurm(**answer)
        job = state("28")
        assert job == JobState(state="UNKNOWN")
        assert (job.active, job.result) == (False, 1)


# --- exit codes


@pytest.mark.parametrize(
    ("word", "code", "expected"),
    [
        ("COMPLETED", 0, 0), ("FAILED", 3, 3), ("FAILED", 137, 137), ("FAILED", 0, 1), ("CANCELLED", 0, 143),
        ("CANCELLED", 9, 143), ("TIMEOUT", 0, 124), ("DEADLINE", 0, 124), ("OUT_OF_MEMORY", 253, 137),
        ("NODE_FAIL", 0, 1), ("PREEMPTED", 0, 1), ("BOOT_FAIL", 0, 1), ("UNKNOWN", 0, 1), ("REVOKED", 5, 5),
    ],
)  # fmt: skip
def test_only_a_completed_job_has_result_0(word: str, code: int, expected: int) -> None:
    job = JobState(state=word, exit_code=code)
    assert (job.active, job.result) == (False, expected)


def test_queued_and_running_jobs_are_active() -> None:
    words = "PENDING CONFIGURING RUNNING COMPLETING SUSPENDED REQUEUED REQUEUE_HOLD SPECIAL_EXIT STAGE_OUT SIGNALING"
    assert [word for word in words.split() if not JobState(state=word).active] == []


# --- commands


def test_a_missing_or_hanging_command_is_an_error_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm_queue.available()
    with pytest.raises(RuntimeError, match="job 28: scontrol is not installed here"):
        state("28")
    with pytest.raises(RuntimeError, match="scancel 28 failed: scancel is not installed here"):
        slurm_queue.cancel("28")
    for command in ("scontrol", "scancel"):
        (tmp_path / command).write_text("#!/bin/sh\nexec /bin/sleep 30\n")
        (tmp_path / command).chmod(0o755)
    assert slurm_queue.available()
    monkeypatch.setattr(slurm_queue, "PATIENCE", 0.2)
    with pytest.raises(RuntimeError, match=r"job 28: scontrol gave no answer within 0\.2 s"):
        state("28")


def test_signals_go_to_the_job_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "scancel").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm_queue.signal_job("28_3", "USR2")
    slurm_queue.cancel("28")
    assert (tmp_path / "asked").read_text() == "--signal USR2 28_3\n28\n"
    (tmp_path / "scancel").write_text(
        '#!/bin/sh\necho "scancel: error: Kill job error on job id 28: Access" >&2\nexit 1\n'
    )
    with pytest.raises(RuntimeError) as error:
        slurm_queue.cancel("28")
    assert str(error.value) == "scancel 28 failed: scancel: error: Kill job error on job id 28: Access"
