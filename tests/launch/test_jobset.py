"""The JobSet of a TPU slice, against the API and the launcher."""

import math
import re
import signal
from pathlib import Path

import pytest
import yaml

from fedjax_prune.runs.interrupt import INTERRUPTED
from fedjax_prune.runs.settings import SettingsError
from launch import config_file
from launch.errors import LOST, UnreachedError, exit_code

FILE = Path(__file__).parents[2] / "launch" / "jobset.yaml"

# name -> (type, whether it must be there): what the API servers require, of the fields
# that are used. A field that is not listed is a mistake.
# https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/
# https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.31/
METADATA = {"name": (str, True), "annotations": ({str: str}, False)}
CONTAINER = {
    "name": (str, True),
    "image": (str, True),
    "command": ([str], False),
    "args": ([str], False),
    "env": ([{"name": (str, True), "value": (str, False)}], False),
    "ports": ([{"containerPort": (int, True)}], False),
    "resources": ({"limits": ({str: int}, False)}, False),
    "volumeMounts": ([{"name": (str, True), "mountPath": (str, True)}], False),
}
CLAIM = {"claimName": (str, True)}
POD = {
    "restartPolicy": (str, True),  # of the pods of a Job: never the default, Always
    "terminationGracePeriodSeconds": (int, False),
    "nodeSelector": ({str: str}, False),
    "containers": ([CONTAINER], True),
    "volumes": (
        [{"name": (str, True), "persistentVolumeClaim": (CLAIM, False)}],
        False,
    ),
}
EXIT_CODES = {"operator": (str, True), "values": ([int], True)}
FAILED_POD = {"action": (str, True), "onExitCodes": (EXIT_CODES, False)}
FAILED_JOB = {"action": (str, True), "onJobFailureReasons": ([str], False)}
JOB = {
    "parallelism": (int, False),
    "completions": (int, False),
    "backoffLimit": (int, False),
    "podFailurePolicy": (
        {"rules": ([FAILED_POD], True)},
        False,
    ),
    "template": ({"spec": (POD, True)}, True),
}
JOBSET = {
    "apiVersion": (str, True),
    "kind": (str, True),
    "metadata": (METADATA, True),
    "spec": (
        {
            "failurePolicy": (
                {"maxRestarts": (int, False), "rules": ([FAILED_JOB], False)},
                False,
            ),
            "replicatedJobs": (
                [
                    {
                        "name": (str, True),
                        "replicas": (int, False),
                        "template": ({"spec": (JOB, True)}, True),
                    }
                ],
                True,
            ),
        },
        True,
    ),
}
VOLUME = {
    "apiVersion": (str, True),
    "kind": (str, True),
    "metadata": (METADATA, True),
    "spec": (
        {
            "accessModes": ([str], True),
            "storageClassName": (str, False),
            "resources": ({"requests": ({"storage": (str, True)}, True)}, True),
        },
        True,
    ),
}


def check(value, schema, where):
    """Compares a value with a schema: a type, [of each], {str: of each} or fields."""
    if isinstance(schema, type):
        assert type(value) is schema, f"{where}: {value!r}"
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, where
        for number, entry in enumerate(value):
            check(entry, schema[0], f"{where}[{number}]")
    elif str in schema:
        for name, entry in value.items():
            check(entry, schema[str], f"{where}.{name}")
    else:
        missing = {name for name, (_, needed) in schema.items() if needed}
        assert missing <= set(value) <= set(schema), f"{where}: {sorted(value)}"
        for name, entry in value.items():
            check(entry, schema[name][0], f"{where}.{name}")


def jobset():
    return list(yaml.safe_load_all(FILE.read_text()))


def test_the_jobset_has_the_fields_that_its_api_requires():
    volume, jobs = jobset()
    check(volume, VOLUME, "volume")
    check(jobs, JOBSET, "jobs")
    assert (volume["apiVersion"], volume["kind"]) == ("v1", "PersistentVolumeClaim")
    assert (jobs["apiVersion"], jobs["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    with pytest.raises(AssertionError, match="jobs: "):
        check({**jobs, "status": {}}, JOBSET, "jobs")


def test_the_jobset_starts_one_process_for_each_host_of_its_slice():
    volume, jobs = jobset()
    (slice_,) = jobs["spec"]["replicatedJobs"]
    job = slice_["template"]["spec"]
    pods = job["template"]["spec"]
    (container,) = pods["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    shape = pods["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    hosts = math.prod(map(int, shape.split("x"))) // chips
    assert job["parallelism"] == job["completions"] == hosts == 4
    assert job["backoffLimit"] == 0 and pods["restartPolicy"] == "Never"
    # The name of a pod is made of these and must be a DNS label.
    assert re.fullmatch(r"[a-z][a-z0-9-]*", jobs["metadata"]["name"])
    assert len(f"{jobs['metadata']['name']}-{slice_['name']}-0-3-abcde") <= 63
    (mounted,) = container["volumeMounts"]
    (known,) = pods["volumes"]
    assert mounted["name"] == known["name"]
    assert known["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    flags = dict(flag.removeprefix("--").split("=") for flag in container["args"])
    assert container["command"] == ["python", "-m", "fedjax_prune", "train"]
    assert flags["workdir"].startswith(f"{mounted['mountPath']}/")
    assert config_file.load(flags["config"]).cohort_size == 40


def test_the_jobset_starts_again_unless_the_run_itself_has_failed():
    _, jobs = jobset()
    policy = jobs["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    (slice_,) = jobs["spec"]["replicatedJobs"]
    (rule,) = slice_["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"

    def failed():
        raise SettingsError(["rounds must be at least 1, got 0"])

    def too_early():
        raise UnreachedError("process 1 cannot join 10.0.0.1:8482: deadline")

    ending = set(rule["onExitCodes"]["values"])
    assert ending == {exit_code(failed)}
    assert exit_code(too_early) == LOST
    assert not ending & {LOST, INTERRUPTED, 128 + signal.SIGKILL}
