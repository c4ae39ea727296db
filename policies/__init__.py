"""Policies that learn where frames stop, and the arrays that all rooms share.

Names are loaded when they are first used, so that `import eex.policies` loads nothing else.

>>> from eex.policies import make_policy
>>> make_policy("ucb:c=0.5", exits=3).exits
3
"""

from typing import TYPE_CHECKING

from eex.policies.core.face import lazily

if TYPE_CHECKING:
    from eex.policies.checks import check_policy
    from eex.policies.core.base import Context, Outcomes, Policy, Thresholds
    from eex.policies.core.errors import ContractError, EexError
    from eex.policies.core.link import SimulatedLink, parse_link
    from eex.policies.core.off_policy import estimate
    from eex.policies.core.price import Price, parse_price
    from eex.policies.core.references import best_fixed, best_per_exit, oracle
    from eex.policies.core.replay import Feedback, Replayed, replay
    from eex.policies.core.reward import reward
    from eex.policies.core.schedule import Schedule, parse_schedule
    from eex.policies.core.trace import Trace, read_trace, write_trace
    from eex.policies.core.world import Step, step
    from eex.policies.registry import POLICIES, RECOMMENDED, list_policies, make_policy

_MODULES = {
    "Context": "core.base",
    "ContractError": "core.errors",
    "EexError": "core.errors",
    "Feedback": "core.replay",
    "Outcomes": "core.base",
    "POLICIES": "registry",
    "Policy": "core.base",
    "Price": "core.price",
    "RECOMMENDED": "registry",
    "Replayed": "core.replay",
    "Schedule": "core.schedule",
    "SimulatedLink": "core.link",
    "Step": "core.world",
    "Thresholds": "core.base",
    "Trace": "core.trace",
    "best_fixed": "core.references",
    "best_per_exit": "core.references",
    "check_policy": "checks",
    "estimate": "core.off_policy",
    "list_policies": "registry",
    "make_policy": "registry",
    "oracle": "core.references",
    "parse_link": "core.link",
    "parse_price": "core.price",
    "parse_schedule": "core.schedule",
    "read_trace": "core.trace",
    "replay": "core.replay",
    "reward": "core.reward",
    "step": "core.world",
    "write_trace": "core.trace",
}

__all__ = [
    "POLICIES",
    "RECOMMENDED",
    "Context",
    "ContractError",
    "EexError",
    "Feedback",
    "Outcomes",
    "Policy",
    "Price",
    "Replayed",
    "Schedule",
    "SimulatedLink",
    "Step",
    "Thresholds",
    "Trace",
    "best_fixed",
    "best_per_exit",
    "check_policy",
    "estimate",
    "list_policies",
    "make_policy",
    "oracle",
    "parse_link",
    "parse_price",
    "parse_schedule",
    "read_trace",
    "replay",
    "reward",
    "step",
    "write_trace",
]


__getattr__, __dir__ = lazily(__name__, _MODULES)
