# Copyright (c) mmsemi contributors. Licensed under Apache-2.0.
"""Train with and without unlabelled images on digits, and compare.

Both runs get the same labelled scenes, model, augmentation, schedule and
number of steps. Everything goes through ``tools/train.py``, with configs and
commands that are printed, so that each can be run alone.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional

import mmsemi  # noqa: F401, must come before mmdet is imported
from mmsemi.apis.run_records import last_value, read_scalars
from mmsemi.datasets.digits import make_digits

ROOT = Path(__file__).resolve().parent.parent
CONFIG_DIR = ROOT / 'configs'
PERCENT = 2


class Column(NamedTuple):
    """A column of the table, in percent: its head, and where it is from."""
    head: str
    logged: str
    factor: float = 100.


class Task(NamedTuple):
    """What is trained and compared.

    Args:
        configs (dict): Config by name of the method, the baseline first.
        scores (dict): What validations measure, by name in results.json.
        figures (dict): What trainings measure, where they do.
        data_options (Callable): Options of a config, from the folder of the
            data, the seed and whether unlabelled images are used.
        recorded (Path): Results of the project, shown where they are.
    """
    configs: Dict[str, Path]
    scores: Dict[str, Column]
    figures: Dict[str, Column]
    data_options: Callable[[Path, int, bool], dict]
    recorded: Path


SOURCES = 'train_dataloader.dataset.datasets'


def instance_options(data_root: Path, seed: int, semi: bool) -> dict:
    """Return the options that name COCO files."""
    stem = f'annotations/instances_train.seed{seed}-fold0@{PERCENT}'
    options = {
        f'{SOURCES}.0.data_root': data_root,
        f'{SOURCES}.0.ann_file': f'{stem}.json',
        'val_dataloader.dataset.data_root': data_root,
        'val_evaluator.ann_file': data_root /
        'annotations/instances_val.json',
    }
    if semi:
        options.update({
            f'{SOURCES}.1.data_root': data_root,
            f'{SOURCES}.1.ann_file': f'{stem}-unlabeled.json'
        })
    return options


def semantic_options(data_root: Path, seed: int, semi: bool) -> dict:
    """Return the options that name mmseg's lists."""
    stem = f'splits/train.seed{seed}-fold0@{PERCENT}'
    options = {
        f'{SOURCES}.0.data_root': data_root,
        f'{SOURCES}.0.ann_file': f'{stem}.txt',
        'val_dataloader.dataset.data_root': data_root,
    }
    if semi:
        options.update({
            f'{SOURCES}.1.data_root': data_root,
            f'{SOURCES}.1.ann_file': f'{stem}-unlabeled.txt',
            # The hook that draws: pictures of this short training.
            'custom_hooks.2.interval': 1000
        })
    return options


# A method more is a line more in configs.
TASKS = dict(
    instance=Task(
        configs={
            'supervised':
            CONFIG_DIR / 'supervised' /
            'supervised_solov2_r18-fpn_1xb8-2k_digits-2p.py',
            'mean teacher':
            CONFIG_DIR / 'mean_teacher' /
            'mean-teacher_solov2_r18-fpn_1xb24-2k_digits-2p.py'
        },
        scores=dict(
            AP=Column('mask AP', 'coco/segm_mAP'),
            AP50=Column('mask AP50', 'coco/segm_mAP_50')),
        figures={
            'pseudo precision':
            Column('pseudo-label precision', 'pseudo/precision'),
            'pseudo recall': Column('recall', 'pseudo/recall')
        },
        data_options=instance_options,
        recorded=CONFIG_DIR / 'mean_teacher' / 'digits_results.json'),
    semantic=Task(
        configs={
            'supervised':
            CONFIG_DIR / 'supervised' /
            'supervised_fcn-r18_1xb8-3k_digits-2p.py',
            'fixmatch':
            CONFIG_DIR / 'fixmatch' /
            'fixmatch_fcn-r18_1xb16-3k_digits-2p.py'
        },
        # mmsemi.SemanticMetric counts in percent.
        scores=dict(
            mIoU=Column('mIoU', 'mIoU', 1.), PA=Column('PA', 'PA', 1.)),
        figures={
            'pseudo kept': Column('pixels kept', 'pseudo/kept_share'),
            'pseudo accuracy': Column('their accuracy', 'pseudo/accuracy')
        },
        data_options=semantic_options,
        recorded=CONFIG_DIR / 'fixmatch' / 'digits_results.json'))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog='Takes about ten minutes on two cores for one seed.')
    parser.add_argument(
        '--task',
        choices=list(TASKS),
        default='instance',
        help='what is segmented: SOLOv2 finds digits one by one, or a fully '
        'convolutional network gives every pixel a class (default: '
        '%(default)s)')
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/demo'),
        help='where data, logs, table and pictures go, the last three of '
        'other tasks than the default into a folder of its own inside '
        '(default: %(default)s)')
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        default=[0],
        help='seeds of the labelled scenes and of the training; each takes '
        'the whole time (default: 0)')
    parser.add_argument(
        '--max-iters',
        type=int,
        help='train shorter, to try the demo itself; the table then says so')
    args = parser.parse_args()
    if any(seed < 0 for seed in args.seeds):
        parser.error(f'--seeds must not be negative, got {args.seeds}')
    if args.max_iters is not None and args.max_iters < 1:
        parser.error(f'--max-iters must be at least 1, got {args.max_iters}')
    return args


def train_command(task: Task, method: str, data_root: Path, work_dir: Path,
                  seed: int, max_iters: Optional[int] = None) -> List[str]:
    """Return the command of one training run."""
    options = task.data_options(data_root, seed, method != 'supervised')
    if max_iters is not None:
        options.update({
            'train_cfg.max_iters': max_iters,
            'train_cfg.val_interval': max_iters
        })
    return [
        sys.executable,
        str(ROOT / 'tools/train.py'),
        str(task.configs[method]), '--work-dir',
        str(work_dir), '--seed',
        str(seed), '--cfg-options'
    ] + [f'{key}={value}' for key, value in options.items()]


def train_both(commands: Dict[str, List[str]],
               work_dirs: Dict[str, Path]) -> Dict[str, float]:
    """Run the trainings of a seed side by side, return their minutes."""
    # Each keeps little more than one core busy.
    at_once = min(len(commands), os.cpu_count() or 1)
    running: List[subprocess.Popen] = []
    with ThreadPoolExecutor(at_once) as pool:
        minutes = {
            name: pool.submit(train, name, command, work_dirs[name], running)
            for name, command in commands.items()
        }
        try:
            for future in as_completed(minutes.values()):
                future.result()
        except BaseException:
            for future in minutes.values():
                future.cancel()
            for process in running:
                process.terminate()
            raise
    return {name: future.result() for name, future in minutes.items()}


def train(name: str, command: List[str], work_dir: Path,
          running: List[subprocess.Popen]) -> float:
    """Run a training, show where it is, return its minutes."""
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    log_file = work_dir / 'train.log'
    print(f'\n{name}: {" ".join(command)}\n(log: {log_file})', flush=True)
    start, shown = time.time(), 0
    with log_file.open('w') as log:
        # One thread is enough for so small a model; it leaves a core to the
        # data loader, and the last bits do not depend on the machine.
        process = subprocess.Popen(
            command,
            env={
                'OMP_NUM_THREADS': '1',
                **os.environ
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace')
        running.append(process)
        for line in process.stdout:
            log.write(line)
            log.flush()
            match = re.search(r'Iter\(train\) \[\s*(\d+)/(\d+)\]', line)
            if match:
                done, total = int(match[1]), int(match[2])
                # One line for every tenth, so that logs stay short.
                if done * 10 // total > shown:
                    shown = done * 10 // total
                    loss = re.search(r'  loss: ([\d.]+)', line)
                    print(
                        f'{name}: {done}/{total} steps, loss '
                        f'{loss[1] if loss else "?"}, '
                        f'{time.time() - start:.0f} s',
                        flush=True)
        code = process.wait()
    if code != 0:
        tail = ''.join(log_file.read_text().splitlines(True)[-25:])
        sys.exit(f'{tail}\n{name} failed with exit code {code}; the whole '
                 f'log is in {log_file}')
    return (time.time() - start) / 60


def summarise(task: Task, scalars: List[dict],
              minutes: float) -> Dict[str, float]:
    """Return the row of one run."""
    columns = {**task.scores, **task.figures, 'loss': Column('', 'loss', 1.)}
    row = {
        name: column.factor * last_value(scalars, column.logged)
        for name, column in columns.items()
    }
    row['minutes'] = minutes
    # What was not logged is left out: NaN is not equal to itself.
    return {
        key: round(value, 3)
        for key, value in row.items() if value == value
    }


def format_table(task: Task, results: Dict[str, Dict[str, dict]]) -> str:
    """Return a Markdown table of rows by seed and method."""
    columns = {**task.scores, **task.figures}
    heads = [
        'seed', 'method', *(column.head for column in columns.values()),
        'loss', 'minutes'
    ]
    lines = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']

    def text(row: Dict[str, float], name: str, form: str) -> str:
        return form.format(row[name]) if name in row else '–'

    for seed, rows in results.items():
        for method, row in rows.items():
            cells = [
                seed, method, *(text(row, name, '{:.1f}')
                                for name in task.scores),
                *(text(row, name, '{:.0f} %') for name in task.figures),
                text(row, 'loss', '{:.2f}'),
                text(row, 'minutes', '{:.1f}')
            ]
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    task = TASKS[args.task]
    work_dir = args.work_dir.resolve()
    start = time.time()
    data_root = make_digits(
        work_dir / 'data',
        image_size=48,
        digits_per_scene=(1, 2),
        percents=(PERCENT, ),
        split_seeds=args.seeds,
        progress=True)
    print(f'Data: {data_root} ({time.time() - start:.0f} s)')
    if args.task != 'instance':
        work_dir = work_dir / args.task

    results: Dict[str, Dict[str, dict]] = {}
    pictures = work_dir / 'pictures'
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    for seed in args.seeds:
        rows = results.setdefault(str(seed), {})
        run_dirs = {
            name: work_dir / f'{name.replace(" ", "_")}_seed{seed}'
            for name in task.configs
        }
        commands = {
            name: train_command(task, name, data_root, run_dirs[name], seed,
                                args.max_iters)
            for name in task.configs
        }
        print(f'\nSeed {seed}')
        minutes = train_both(commands, run_dirs)
        for name, run_dir in run_dirs.items():
            rows[name] = summarise(task, read_scalars(run_dir), minutes[name])
            for picture in sorted(run_dir.glob('**/pseudo_labels/*.png')):
                shutil.copy(picture,
                            pictures / f'{run_dir.name}_{picture.name}')
    (work_dir / 'results.json').write_text(json.dumps(results, indent=2))
    table = format_table(task, results)
    if args.max_iters is not None:
        table += f'\n\nOnly {args.max_iters} steps, by --max-iters.'
    (work_dir / 'results.md').write_text(table + '\n')

    print('\nThis run, on held-out scenes:\n')
    print(table)
    if task.recorded.is_file():
        recorded = json.loads(task.recorded.read_text())
        print(f'\nRecorded before ({recorded["note"]}):\n')
        print(format_table(task, recorded['results']))
    print(f'\n{len(list(pictures.glob("*.png")))} pictures (weak view, '
          "teacher's pseudo-labels, strong view, student's prediction): "
          f'{pictures}')
    print(f'Table: {work_dir / "results.md"}; took '
          f'{(time.time() - start) / 60:.1f} minutes.')


if __name__ == '__main__':
    main()
