"""Every hook as it was in version 1 of the API, with every argument that it had.

Not to be changed: it stands for plugins that are installed somewhere and were written then.
"""

from adaptkit import Strategy, StrategyOptions, hookimpl

calls = []


class OfVersion1(Strategy[StrategyOptions]):
    """Trains the head alone."""

    name = "of-version-1"

    def adapt(self, model, context):
        return model


@hookimpl
def adaptkit_register_strategies(register):
    register(OfVersion1)


@hookimpl
def adaptkit_register_tasks(register):
    calls.append(("register_tasks", callable(register)))


@hookimpl
def adaptkit_register_formats(register):
    calls.append(("register_formats", callable(register)))


@hookimpl
def adaptkit_register_metrics(register):
    calls.append(("register_metrics", callable(register)))


@hookimpl
def adaptkit_register_optimizers(register):
    calls.append(("register_optimizers", callable(register)))


@hookimpl
def adaptkit_register_trackers(register):
    calls.append(("register_trackers", callable(register)))


@hookimpl
def adaptkit_train_begin(run):
    calls.append(("train_begin", run))


@hookimpl
def adaptkit_step_end(run, record):
    calls.append(("step_end", run, record))


@hookimpl
def adaptkit_evaluated(run, metrics):
    calls.append(("evaluated", run, metrics))


@hookimpl
def adaptkit_checkpoint_saved(run, path):
    calls.append(("checkpoint_saved", run, path))


@hookimpl
def adaptkit_train_end(run):
    calls.append(("train_end", run))


@hookimpl
def adaptkit_train_error(run, error):
    calls.append(("train_error", run, error))
