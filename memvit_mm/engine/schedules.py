"""Put the schedules of a resumed run where another epoch length wants them."""

from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.lr_scheduler import ReduceOnPlateauLR
from mmengine.optim.scheduler.momentum_scheduler import ReduceOnPlateauMomentum
from mmengine.runner import Runner


def place_schedules(runner: Runner) -> None:
    """Build the schedules anew and step them to the run's present iteration.

    Those that count iterations reach their end with the last epoch again, as if the
    run had had its present number of processes from the start. Schedules that follow a
    metric, and those of several optimizers, stay as they are.
    """
    configs, wrapper = runner.cfg.get('param_scheduler'), runner.optim_wrapper
    if not configs or not isinstance(wrapper, OptimWrapper):
        return
    plateau = (ReduceOnPlateauLR, ReduceOnPlateauMomentum)
    if any(isinstance(scheduler, plateau) for scheduler in runner.param_schedulers):
        return
    loop = runner.train_loop
    for group in wrapper.param_groups:
        for key in [key for key in group if key.startswith('initial_')]:
            group[key[len('initial_') :]] = group[key]
    runner.param_schedulers = runner.build_param_scheduler(configs)
    epoch_length = len(runner.train_dataloader)
    for iteration in range(1, loop.iter + 1):
        for scheduler in runner.param_schedulers:
            if not scheduler.by_epoch or iteration % epoch_length == 0:
                # What mmengine warns of: a schedule that steps before its optimizer.
                wrapper.optimizer._global_step = scheduler._global_step + 1
                scheduler.step()
