# A study in pieces, several models at a time, on this machine or on a cluster. `python -m lib.run batch` does the same,
# one model after the other.
#
#   python -m snakemake -n                                     # what the study of lfw64 lacks
#   python -m snakemake --cores 4                              # make it, four models at a time, a core each
#   python -m snakemake --cores 8 --config setup=digits match=ppa threads=2
#   python -m snakemake --executor slurm --jobs 20             # a job a model; wants snakemake-executor-plugin-slurm, and
#                                                              # MIDRE_CACHE on a disk that all machines see
#   python -m snakemake --cores 4 notebooks                    # and then the notebooks, by papermill
#
# Models come in no certain order: `match` names what is wanted first. Add --keep-going to go on after a failure. What
# is made, the store says (lib/store.py): only what it lacks is listed here, and the flags below tell Snakemake no more
# than that a piece ended well. Whatever happens, what is made is kept.
import shlex
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)

from lib.reports.workbook import open_workbook
from lib.results import run_dir
from lib.run import batch

SETUP, MATCH = str(config.get("setup", "lfw64")), str(config.get("match", ""))
RUN = f"{shlex.quote(sys.executable)} -m lib.run"
BOOK = open_workbook(SETUP)
DONE = run_dir(BOOK.setup.name) / "batch"


def flags(units):
    return [str(DONE / f"{name}.done") for name in units]


TO_CHOOSE, MISSING = batch.lengths(BOOK, MATCH), batch.missing(BOOK, MATCH)


def about(name):
    """A unit in words."""
    unit = {**TO_CHOOSE, **MISSING}.get(name)
    if unit is None:  # made in the meantime
        return name
    kind, attack = unit[0]
    if kind == "selection":
        return batch.KINDS[kind][0](attack).label
    return f"{attack.target_stage().label}: {len(unit)} records"


if workflow.is_main_process:  # flags of before something was removed from the store
    for flag in flags({**TO_CHOOSE, **MISSING}):
        Path(flag).unlink(missing_ok=True)


def of_chosen_lengths(_):
    """With what could not be listed before training lengths were chosen."""
    checkpoints.lengths.get()
    MISSING.update(batch.missing(BOOK, MATCH))
    return flags(MISSING)


rule study:
    input:
        flags(MISSING),
        of_chosen_lengths if TO_CHOOSE else [],
    default_target: True


rule notebooks:
    input:
        rules.study.input,
    params:
        setup=SETUP,
    shell:
        "{RUN} setup {params.setup:q}"


checkpoint lengths:
    input:
        flags(TO_CHOOSE),
    output:
        touch(temp(DONE / "lengths.chosen")),


rule unit:
    output:
        touch(DONE / "{name}.done"),
    log:
        DONE / "{name}.log",
    threads: int(config.get("threads", 1))
    params:
        setup=SETUP,
        match=MATCH,
        about=lambda wildcards: about(wildcards.name),
    message:
        "{params.about}"
    shell:
        "{RUN} batch {params.setup:q} --match {params.match:q} --unit {wildcards.name:q} > {log:q} 2>&1"


onsuccess:
    batch.keep(BOOK)


onerror:
    batch.keep(BOOK)
