"""Lower bounds on ε from attacks: what somebody who tries to break a mechanism has shown about it.

An accountant says at most how much is given away, an audit at least how much: one above the other means that
what ran is not what was accounted for. A small lower bound says little: the attack may have been a weak one.

Every estimator here takes numbers alone. Scores are higher where the attack believes that a canary was there.
Of `counts.py` a threshold makes errors, whose shares `classic.py`, `gaussian.py` and `bayesian.py` turn
into bounds; `one_run.py` and `f_dp_one_run.py` need many canaries in one run; `curve.py` asks whether errors
are possible at all under a plan. All of them are vectorised over leading dimensions, which are independent
audits. Where scores come from is `lightning_dp.audits`' part.
"""
