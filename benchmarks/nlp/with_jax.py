"""Sets of sif2jax 0.0.8, jitted: equality problems with n <= 300, m <= n; Hock-Schittkowski's with inequalities or bounds; others
with n <= 60, as sif2jax has them.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from .model import Model, Part

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / f"sif2jax-compiled-{os.getuid()}"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CUTEST_EQ = names("""
    ARGTRIG BOOTH BT1 BT10 BT11 BT12 BT2 BT3 BT4 BT5 BT6 BT7 BT8 BT9 BYRDSPHR CLUSTER COOLHANS DENSCHNCNE DENSCHNDNE DENSCHNENE
    DENSCHNFNE FLT FREURONE GOTTFR HATFLDF HATFLDFLNE HATFLDG HEART6 HEART8 HELIXNE HIMMELBA HIMMELBC HIMMELBD HIMMELBE HS111LNP
    HS26 HS27 HS28 HS39 HS40 HS42 HS46 HS47 HS48 HS49 HS50 HS51 HS52 HS56 HS6 HS61 HS7 HS77 HS78 HS79 HS8 HS9 HYPCIR INTEQNE
    LUKSAN21 MANCINONE MARATOS MSS1 ORTHREGB OSCIPANE POWELLBS POWELLSE POWELLSQ POWERSUMNE QINGNE RECIPE S316-322 SINVALNE
    TRIGON1NE VANDANIUMS
""")
HS_INEQ = names("""
    HS1 HS2 HS3 HS3MOD HS4 HS5 HS10 HS11 HS12 HS13 HS14 HS15 HS16 HS17 HS18 HS19 HS20 HS21 HS21MOD HS22 HS23 HS24 HS25 HS29 HS30
    HS31 HS32 HS33 HS34 HS35 HS35I HS35MOD HS36 HS37 HS38 HS41 HS43 HS44 HS44NEW HS45 HS53 HS54 HS55 HS57 HS60 HS62 HS63 HS64
    HS65 HS66 HS68 HS69 HS71 HS72 HS73 HS76 HS76I HS80 HS81 HS83 HS86 HS87 HS88 HS89 HS90 HS91 HS92 HS93 HS95 HS96 HS97 HS98
    HS100 HS101 HS102 HS103 HS104 HS105 HS106 HS107 HS108 HS110 HS111 HS112 HS113 HS114 HS116 HS117 HS119 HS268
""")
FRESH = names("""
    AIRCRFTA AIRCRFTB AKIVA ALLINITA ALLINITC ALLINITU ALSOTAME ANTWERP AVGASA AVGASB AVION2 BARD BATCH BDRY2 BEALE BENNETT5LS
    BIGGS3 BIGGS5 BIGGS6 BIGGSC4 BOX2 BOX3 BOXBODLS BQP1VAR BQPGABIM BQPGASIM BRANIN BRKMCC BROWNBS BROWNDEN BT13 BURKEHAN
    CAMEL6 CANTILVR CB2 CB3 CERI651ALS CHACONN1 CHACONN2 CHNROSNB CHNRSNBM CHWIRUT1LS CHWIRUT2LS CLIFF CLUSTERLS CONCON
    COOLHANSLS CRESC4 CSFI1 CSFI2 CUBE CUBENE DALLASS DANIWOODLS DEGENLPA DEGENLPB DEMBO7 DEMYMALO DENSCHNA DENSCHNB DENSCHNC
    DENSCHND DENSCHNE DENSCHNF DEVGLA1 DEVGLA1B DEVGLA2 DEVGLA2B DGOSPEC DIAGIQB DIPIGRI DISC2 DIXCHLNG DIXMAANA1 DJTL
    ECKERLE4LS EG1 EGGCRATE EGGCRATEB ELATVIDU ELATVIDUB ENGVAL2 ENSOLS ERRINROS EXP2 EXP2B EXPFIT EXPFITA EXTRASIM FBRAIN2LS
    FBRAIN3LS FBRAINLS FCCU FLETCHER GAUSS1LS GAUSSIAN GBRAINLS GIGOMEZ1 GIGOMEZ2 GIGOMEZ3 GOFFIN GOULDQP1 GROWTHLS GULF HAHN1LS
    HAIFAS HAIRY HART6 HATFLDA HATFLDANE HATFLDB HATFLDBNE HATFLDC HATFLDCNE HATFLDD HATFLDH HEART6LS HELIX HIELOW HILBERTA
    HILBERTB HIMMELBB HIMMELBCLS HIMMELBF HIMMELBG HIMMELBH HIMMELP1 HIMMELP2 HIMMELP3 HIMMELP4 HIMMELP5 HIMMELP6 HS100LNP
    HS100MOD HS109 HS118 HS1NE HS2NE HS59 HS67 HS74 HS75 HS84 HS85 HS99 HS99EXP HUMPS JENSMP JNLBRNG1 JUDGE JUDGEB KIRBY2LS
    KIWCRESC KOEBHELB KOWOSB LANCZOS1LS LANCZOS2LS LEVYMONT10 LEVYMONT5 LEVYMONT6 LEVYMONT7 LEVYMONT8 LEVYMONT9 LOGHAIRY LOGROS
    LOOTSMA LSC1LS LSC2LS LSNNODOC LSQFIT MADSEN MAKELA1 MAKELA2 MAKELA3 MAKELA4 MARATOSB MATRIX2 MAXLIKA MEXHAT MGH09LS MGH10LS
    MGH10SLS MGH17LS MGH17SLS MINMAXBD MINMAXRB MISRA1ALS MISRA1BLS MISRA1CLS MISRA1DLS MOREBVNE NELSONLS ODFITS OPTCNTRL
    OPTPRLOC OSBORNEA OSBORNEB PALMER1 PALMER1A PALMER1B PALMER1C PALMER1D PALMER1E PALMER2 PALMER2A PALMER2B PALMER2C PALMER2E
    PALMER3 PALMER3A PALMER3B PALMER3C PALMER3E PALMER4 PALMER4A PALMER4B PALMER4C PALMER4E PALMER5A PALMER5B PALMER5C PALMER5D
    PALMER5E PALMER6A PALMER6C PALMER6E PALMER7A PALMER7C PALMER7E PALMER8A PALMER8C PALMER8E PENTAGON PFIT1 PFIT1LS PFIT2
    PFIT2LS PFIT3 PFIT3LS PFIT4 PFIT4LS POLAK1 POLAK2 POLAK3 POLAK4 POLAK5 POLAK6 PORTFL1 PORTFL2 PORTFL3 PORTFL4 PORTFL6
    PORTSNQP POWERSUM PRICE3 PRICE4 PRICE4B QINGB RAT42LS RAT43LS RECIPELS RES ROSENBR ROSZMAN1LS S308 S365 S365MOD S368 SANTALS
    SIMPLLPA SIMPLLPB SINEVAL SISSER SNAIL TAME TENBARS1 TENBARS2 TENBARS3 TENBARS4 TRIGON1 TRIGON1B TRIGON2 TRIGON2B TRO3X3
    TRO6X2 TRUSPYR1 TRUSPYR2 VESUVIALS VESUVIOLS VESUVIOULS VIBRBEAM WATSON WAYSEA1 WAYSEA2 YATP2LS ZANGWIL2 ZECEVIC2 ZECEVIC3
    ZECEVIC4
""")


def models(wanted: Iterable[str]) -> Iterator[Model]:
    modules = of_classes()
    for name in wanted:
        kind = name.replace("-", "_")
        yield model(getattr(importlib.import_module(modules[kind]), kind)())


@functools.cache
def of_classes() -> dict[str, str]:
    """Modules of sif2jax by the class they define. Its packages are put in place empty: `import sif2jax` makes all 849 problems,
    which takes 40 s.
    """
    spec = find_spec("sif2jax")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    folders = [root, root / "cutest", *sorted((root / "cutest").glob("_*/"))]
    found: dict[str, str] = {}
    for folder in folders:
        name = ".".join(("sif2jax", *folder.relative_to(root).parts))
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules.setdefault(name, package)
        for file in sorted(folder.glob("*.py")):
            kinds = re.findall(r"^class (\w+)\(", file.read_text(), re.MULTILINE)
            found = dict.fromkeys(kinds, f"{name}.{file.stem}") | found
    return found


def model(problem: Any) -> Model:
    x0, tree = ravel_pytree(problem.y0)
    x0 = np.asarray(x0, dtype=float)

    def f(y: jax.Array) -> jax.Array:
        return jax.numpy.asarray(problem.objective(tree(y), problem.args), dtype=float).reshape(())

    def rows(which: int, sign: float) -> Callable[[jax.Array], jax.Array]:
        return lambda y: sign * ravel_pytree(problem.constraint(tree(y))[which])[0].astype(float)

    constrained = hasattr(problem, "constraint")
    c, h = problem.constraint(problem.y0) if constrained else (None, None)
    bounds = getattr(problem, "bounds", None)
    low, high = (np.asarray(ravel_pytree(side)[0], dtype=float) for side in bounds) if bounds else (x0 - np.inf, x0 + np.inf)
    return Model(
        name=problem.name,
        x0=x0,
        low=np.where(low > -1e19, low, -np.inf),
        high=np.where(high < 1e19, high, np.inf),
        f=Part(value=on(f), first=on(jax.grad(f)), second=on(jax.hessian(f))),
        c=None if c is None else part(rows(0, 1.0)),
        h=None if h is None else part(rows(1, -1.0)),  # sif2jax has h(x) >= 0
    )


def part(c: Callable[[jax.Array], jax.Array]) -> Part:
    return Part(value=on(c), first=on(jax.jacfwd(c)), second=on(jax.hessian(lambda x, w: c(x) @ w)))


def on(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    compiled = jax.jit(function)
    return lambda *args: np.array(compiled(*args))
