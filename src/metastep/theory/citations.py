"""Which paper and equation a public object implements: the `source` mark and `cite`, which reads it."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Literal, TypeVar

from metastep._errors import InputError, check_choice

Form = Literal["as printed", "corrected", "derived"]
Marked = TypeVar("Marked")

_MARK = "__metastep_sources__"

BIBLIOGRAPHY: dict[str, str] = {
    "zou2022": """@inproceedings{zou2022unraveling,
  title     = {Unraveling Model-Agnostic Meta-Learning via the Adaptation Learning Rate},
  author    = {Zou, Yingtian and Liu, Fusheng and Li, Qianxiao},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}""",
    "fallah2020": """@inproceedings{fallah2020convergence,
  title     = {On the Convergence Theory of Gradient-Based Model-Agnostic Meta-Learning Algorithms},
  author    = {Fallah, Alireza and Mokhtari, Aryan and Ozdaglar, Asuman},
  booktitle = {International Conference on Artificial Intelligence and Statistics},
  year      = {2020}
}""",
    "finn2017": """@inproceedings{finn2017maml,
  title     = {Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks},
  author    = {Finn, Chelsea and Abbeel, Pieter and Levine, Sergey},
  booktitle = {International Conference on Machine Learning},
  year      = {2017}
}""",
    "takagi": """@misc{takagi2020conditions,
  title  = {On the Conditions of {MAML} Convergence},
  author = {Takagi, Shiro and Nagano, Yoshihiro and Yoshida, Yuki and Okada, Masato},
  note   = {Poster}
}""",
    "bernacchia2021": """@inproceedings{bernacchia2021negative,
  title     = {Meta-learning with negative learning rates},
  author    = {Bernacchia, Alberto},
  booktitle = {International Conference on Learning Representations},
  year      = {2021}
}""",
    "raghu2020": """@inproceedings{raghu2020anil,
  title     = {Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of {MAML}},
  author    = {Raghu, Aniruddh and Raghu, Maithra and Bengio, Samy and Vinyals, Oriol},
  booktitle = {International Conference on Learning Representations},
  year      = {2020}
}""",
    "defazio2023": """@misc{defazio2023optimal,
  title         = {Optimal Linear Decay Learning Rate Schedules and Further Refinements},
  author        = {Defazio, Aaron and Cutkosky, Ashok and Mehta, Harsh and Mishchenko, Konstantin},
  year          = {2023},
  eprint        = {2310.07831},
  archiveprefix = {arXiv}
}""",
    "hu2024": """@misc{hu2024minicpm,
  title         = {{MiniCPM}: Unveiling the Potential of Small Language Models with Scalable Training Strategies},
  author        = {Hu, Shengding and Tu, Yuge and Han, Xu and others},
  year          = {2024},
  eprint        = {2404.06395},
  archiveprefix = {arXiv}
}""",
    "li2026": """@misc{li2026schedules,
  title         = {Optimal Learning-Rate Schedules under Functional Scaling Laws: Power Decay and
                   Warmup-Stable-Decay},
  author        = {Li, Binghui and Wang, Zilin and Chen, Fengling and Zhao, Shiyang and Zheng, Ruiheng and Wu, Lei},
  year          = {2026},
  eprint        = {2602.06797},
  archiveprefix = {arXiv}
}""",
    "polyak1969": """@article{polyak1969unsmooth,
  title   = {Minimization of Unsmooth Functionals},
  author  = {Polyak, Boris T.},
  journal = {USSR Computational Mathematics and Mathematical Physics},
  volume  = {9},
  number  = {3},
  year    = {1969}
}""",
    "cutkosky2020": """@inproceedings{cutkosky2020momentum,
  title     = {Momentum Improves Normalized {SGD}},
  author    = {Cutkosky, Ashok and Mehta, Harsh},
  booktitle = {International Conference on Machine Learning},
  year      = {2020}
}""",
    "andrew2021": """@inproceedings{andrew2021adaptive,
  title     = {Differentially Private Learning with Adaptive Clipping},
  author    = {Andrew, Galen and Thakkar, Om and McMahan, H. Brendan and Ramaswamy, Swaroop},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}""",
    "cutkosky2021": """@inproceedings{cutkosky2021heavy,
  title     = {High-probability Bounds for Non-Convex Stochastic Optimization with Heavy Tails},
  author    = {Cutkosky, Ashok and Mehta, Harsh},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}""",
    "ivgi2023": """@inproceedings{ivgi2023dog,
  title     = {DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule},
  author    = {Ivgi, Maor and Hinder, Oliver and Carmon, Yair},
  booktitle = {International Conference on Machine Learning},
  year      = {2023}
}""",
    "shazeer2018": """@inproceedings{shazeer2018adafactor,
  title     = {Adafactor: Adaptive Learning Rates with Sublinear Memory Cost},
  author    = {Shazeer, Noam and Stern, Mitchell},
  booktitle = {International Conference on Machine Learning},
  year      = {2018}
}""",
    "nichol2018": """@misc{nichol2018reptile,
  title         = {On First-Order Meta-Learning Algorithms},
  author        = {Nichol, Alex and Achiam, Joshua and Schulman, John},
  year          = {2018},
  eprint        = {1803.02999},
  archiveprefix = {arXiv}
}""",
    "li2017": """@misc{li2017metasgd,
  title         = {Meta-{SGD}: Learning to Learn Quickly for Few-Shot Learning},
  author        = {Li, Zhenguo and Zhou, Fengwei and Chen, Fei and Li, Hang},
  year          = {2017},
  eprint        = {1707.09835},
  archiveprefix = {arXiv}
}""",
    "baydin2018": """@inproceedings{baydin2018hypergradient,
  title     = {Online Learning Rate Adaptation with Hypergradient Descent},
  author    = {Baydin, At{\\i}l{\\i}m G{\\"u}ne{\\c{s}} and Cornish, Robert and Mart{\\'\\i}nez Rubio, David and
               Schmidt, Mark and Wood, Frank},
  booktitle = {International Conference on Learning Representations},
  year      = {2018}
}""",
    "behl2019": """@misc{behl2019alpha,
  title         = {Alpha {MAML}: Adaptive Model-Agnostic Meta-Learning},
  author        = {Behl, Harkirat Singh and Baydin, At{\\i}l{\\i}m G{\\"u}ne{\\c{s}} and Torr, Philip H. S.},
  year          = {2019},
  eprint        = {1905.07435},
  archiveprefix = {arXiv}
}""",
    "cohen2021": """@inproceedings{cohen2021edge,
  title     = {Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability},
  author    = {Cohen, Jeremy M. and Kaur, Simran and Li, Yuanzhi and Kolter, J. Zico and Talwalkar, Ameet},
  booktitle = {International Conference on Learning Representations},
  year      = {2021}
}""",
    "cohen2022": """@misc{cohen2022adaptive,
  title         = {Adaptive Gradient Methods at the Edge of Stability},
  author        = {Cohen, Jeremy M. and Ghorbani, Behrooz and Krishnan, Shankar and Agarwal, Naman and others},
  year          = {2022},
  eprint        = {2207.14484},
  archiveprefix = {arXiv}
}""",
    "ashtekar": """@misc{ashtekar2021maml,
  title  = {Model-Agnostic Meta-Learning: Theory Explained},
  author = {Ashtekar},
  note   = {Report}
}""",
    "metastep": """@software{metastep,
  title  = {metastep: meta-learning with learning rates from theory and measurement},
  author = {{The metastep authors}}
}""",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """One equation an object implements, and whether it is the printed or the corrected form."""

    key: str
    equation: str
    form: Form
    note: str = ""

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        return f"{self.equation} [{self.form}{note}]\n{BIBLIOGRAPHY[self.key]}"


def source(
    key: str, equation: str, form: Form = "corrected", note: str = ""
) -> Callable[[Marked], Marked]:
    """Mark a function or class as an implementation of `equation` of the paper `key`; marks stack."""
    check_choice("source key", key, BIBLIOGRAPHY)

    def mark(target: Marked) -> Marked:
        earlier = getattr(target, _MARK, ())
        setattr(target, _MARK, (Source(key, equation, form, note), *earlier))
        return target

    return mark


def sources(target: object) -> tuple[Source, ...]:
    """The marks of an object, or of its class when it is an instance."""
    return getattr(target, _MARK, ())


def cite(target: object) -> str:
    """The equation and BibTeX entry of every paper a public object of metastep implements.

    A class of results without a mark is cited by the functions beside it that return it.

    Parameters
    ----------
    target : a function, a class or an instance of one

    Returns
    -------
    For each mark the equation, whether it stands as printed or corrected, and the BibTeX entry.

    Raises
    ------
    InputError
        When the object carries no mark, as user functions and helpers do not.

    Examples
    --------
    >>> from metastep import theory
    >>> print(theory.cite(theory.limit_rate).splitlines()[1])
    @inproceedings{zou2022unraveling,

    References
    ----------
    None of its own: it gives those of other objects.
    """
    marks = sources(target) or _sources_of_makers(target)
    if not marks:
        name = getattr(target, "__name__", type(target).__name__)
        raise InputError(
            f"cite: {name} implements no published equation, so there is nothing to cite"
        )
    return "\n\n".join(str(mark) for mark in marks)


def _sources_of_makers(target: object) -> tuple[Source, ...]:
    """The marks of the functions in a class's own module that are annotated to return it."""
    made = target if isinstance(target, type) else type(target)
    makers = [
        function
        for function in vars(sys.modules[made.__module__]).values()
        if getattr(function, "__annotations__", {}).get("return") is made
    ]
    return tuple(dict.fromkeys(mark for function in makers for mark in sources(function)))


# So that every public object can be cited, the marks themselves included.
for _own in (Source, source, sources, cite):
    source("metastep", "citations in code", "derived")(_own)
