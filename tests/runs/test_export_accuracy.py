"""What a client's compacted network keeps on its validation data."""

import numpy as np

from configs import base
from fedjax_prune.models import costs
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.export.choose import choose
from fedjax_prune.runs.learning import task_of
from fedjax_prune.types import Variables
from tests.exported import CLIENT, write_run
from tests.small_runs import tiny_config


def test_accuracies_are_those_of_the_networks_on_the_validation_set(tmp_path):
    fields = {"rounds": 1, "model.width": 0.5, "model.keep_ratio": 0.3}
    config = tiny_config(**fields)
    config.algorithm = base.algorithm("fedavg")
    learning, state, personal = write_run(tmp_path / "run", config)
    compact = choose(tmp_path / "run", "compact", CLIENT, 0.5)
    found = compact.own_validation
    data = load_data(learning.config)
    table = data.validation(np.array([CLIENT], np.int32))
    indices = table.indices[0, : table.sizes[0]]
    source = data.train if data.held_out else data.test
    images, labels = source.images[indices], source.labels[indices]

    def accuracy(task, variables):
        predicted = np.asarray(task.predict(variables, images)).argmax(-1)
        return np.mean(predicted == labels)

    shared = Variables(state.params, {}, state.model_state)
    assert (found.client, found.examples) == (CLIENT, len(indices))
    wanted = {
        "dense": accuracy(learning.dense_task, shared),
        "gated": accuracy(learning.task, shared._replace(personal=personal)),
        "compact": accuracy(task_of(config, compact.model), compact.variables),
    }
    assert {name: getattr(found, name) for name in wanted} == wanted
    shape = learning.image_shape
    whole = costs.macs(learning.model, shape).dense
    assert found.macs == costs.macs(compact.model, shape).dense / whole <= 0.5
