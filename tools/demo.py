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
from typing import Dict, List

import mmsemi  # noqa: F401, must come before mmdet is imported
from mmsemi.datasets.digits import make_digits

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {
    'supervised':
    ROOT / 'configs' / 'supervised' /
    'supervised_solov2_r18-fpn_1xb8-2k_digits-2p.py',
    'mean teacher':
    ROOT / 'configs' / 'mean_teacher' /
    'mean-teacher_solov2_r18-fpn_1xb24-2k_digits-2p.py'
}
RECORDED = ROOT / 'configs/mean_teacher/digits_results.json'
PERCENT = 2
METRICS = ('coco/segm_mAP', 'coco/segm_mAP_50')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog='Takes about ten minutes on two cores for one seed.')
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/demo'),
        help='where data, logs, table and pictures go (default: '
        '%(default)s)')
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


def train_command(config: Path, data_root: Path, work_dir: Path, seed: int,
                  max_iters: int = None) -> List[str]:
    """Return the command of one training run."""
    stem = f'annotations/instances_train.seed{seed}-fold0@{PERCENT}'
    datasets = 'train_dataloader.dataset.datasets'
    options = {
        f'{datasets}.0.data_root': data_root,
        f'{datasets}.0.ann_file': f'{stem}.json',
        'val_dataloader.dataset.data_root': data_root,
        'val_evaluator.ann_file': data_root /
        'annotations/instances_val.json',
    }
    if 'mean-teacher' in config.name:
        options.update({
            f'{datasets}.1.data_root': data_root,
            f'{datasets}.1.ann_file': f'{stem}-unlabeled.json'
        })
    if max_iters is not None:
        options.update({
            'train_cfg.max_iters': max_iters,
            'train_cfg.val_interval': max_iters
        })
    return [
        sys.executable,
        str(ROOT / 'tools/train.py'),
        str(config), '--work-dir',
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


def read_scalars(work_dir: Path) -> List[dict]:
    """Return the logged scalars of a run, oldest first."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not files:
        sys.exit(f'The training left no scalars under {work_dir}.')
    return [json.loads(line) for line in files[-1].read_text().splitlines()]


def last_value(scalars: List[dict], key: str) -> float:
    """Return the last logged value of a key; NaN if there is none."""
    values = [entry[key] for entry in scalars if key in entry]
    return values[-1] if values else float('nan')


def summarise(scalars: List[dict], minutes: float) -> Dict[str, float]:
    """Return the row of one run."""
    row = {
        'AP': 100 * last_value(scalars, METRICS[0]),
        'AP50': 100 * last_value(scalars, METRICS[1]),
        'loss': last_value(scalars, 'loss'),
        'minutes': minutes
    }
    for key in ('precision', 'recall'):
        value = last_value(scalars, f'pseudo/{key}')
        if value == value:
            row[f'pseudo {key}'] = 100 * value
    return {key: round(value, 3) for key, value in row.items()}


def format_table(results: Dict[str, Dict[str, dict]]) -> str:
    """Return a Markdown table of rows by seed and method."""
    lines = [
        '| seed | method | mask AP | mask AP50 | pseudo-label precision | '
        'recall | loss | minutes |', '|---|---|---|---|---|---|---|---|'
    ]
    for seed, rows in results.items():
        for name, row in rows.items():
            quality = [
                f'{row[key]:.0f} %' if key in row else '–'
                for key in ('pseudo precision', 'pseudo recall')
            ]
            lines.append(
                f'| {seed} | {name} | {row["AP"]:.1f} | {row["AP50"]:.1f} | '
                f'{quality[0]} | {quality[1]} | {row["loss"]:.2f} | '
                f'{row["minutes"]:.1f} |')
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
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

    results: Dict[str, Dict[str, dict]] = {}
    pictures = work_dir / 'pictures'
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    for seed in args.seeds:
        rows = results.setdefault(str(seed), {})
        run_dirs = {
            name: work_dir / f'{name.replace(" ", "_")}_seed{seed}'
            for name in CONFIGS
        }
        commands = {
            name: train_command(config, data_root, run_dirs[name], seed,
                                args.max_iters)
            for name, config in CONFIGS.items()
        }
        print(f'\nSeed {seed}')
        minutes = train_both(commands, run_dirs)
        for name, run_dir in run_dirs.items():
            rows[name] = summarise(read_scalars(run_dir), minutes[name])
            for picture in sorted(run_dir.glob('**/pseudo_labels/*.png')):
                shutil.copy(picture, pictures / f'seed{seed}_{picture.name}')
    (work_dir / 'results.json').write_text(json.dumps(results, indent=2))
    table = format_table(results)
    if args.max_iters is not None:
        table += f'\n\nOnly {args.max_iters} steps, by --max-iters.'
    (work_dir / 'results.md').write_text(table + '\n')

    print('\nThis run, on held-out scenes:\n')
    print(table)
    if RECORDED.is_file():
        recorded = json.loads(RECORDED.read_text())
        print(f'\nRecorded before ({recorded["note"]}):\n')
        print(format_table(recorded['results']))
    print(f'\n{len(list(pictures.glob("*.png")))} pictures (weak view, '
          "teacher's pseudo-labels, strong view, student's prediction): "
          f'{pictures}')
    print(f'Table: {work_dir / "results.md"}; took '
          f'{(time.time() - start) / 60:.1f} minutes.')


if __name__ == '__main__':
    main()
