"""Per-unit clipping: Σ_u w_u · g_u · min(1, C / ‖g_u‖) of a batch, exactly, and what of it is public.

`engine.py` is the interface, `functions.py` has what turns norms into factors, and four engines compute the
same sum: `book_keeping.py` (the default, fast), `loop.py` (one backward a unit, the oracle of all tests),
`materialised.py` (plain torch.func), `one_by_one.py` (for batches of one unit). `unit_sums.py` is the
arithmetic that they share. `_book_keeping` is the inside of the default engine and nobody else's.

How the default engine treats one `nn.Linear(d, p)`, y = x Wᵀ + b. The batch has U units, each with T tokens
(its rows, times positions); A (U, T, d) is what goes into the layer, G (U, T, p) the gradient of
loss_scale · mean loss with respect to y. Unit u's gradient is the mean over its own rows, which is
s = U / loss_scale times what its tokens delivered:

    g_u(W) = s · Σ_t G[u, t]ᵀ A[u, t]    (p, d)          g_u(b) = s · Σ_t G[u, t]    (p,)

1. *Before the fit* (`following.py`, `sites.py`). A step is followed operator by operator. Where the layer
   has the units of the batch is an answer of that step, never a guess by lengths.
2. *Forward* (`_book_keeping/layer_ops.py`, `linear`). W and b come in detached, so that autograd forms no
   weight gradient; W's and b's collectors are told that a use is coming.
3. *Backward* (the same file, `_Linear.backward`). It returns the input's gradient G W, as any linear layer,
   and hands A and G to W's collector as an `OuterProductGradient`, Σ_t G[u, t] (U, p) to b's as a
   `KeptGradient` (`_book_keeping/backward_record.py`).
4. *Norms*, while A and G are in cache (`_book_keeping/per_unit_gradient.py`). ‖Σ_t G[u, t]ᵀ A[u, t]‖² is had
   in one of four ways, the one with the fewest operations (`_book_keeping/norm_method.py`): for T = 1 it is
   ‖A[u]‖² · ‖G[u]‖²; from the Gram matrices it is Σ_{t,t'} (A[u] A[u]ᵀ ∘ G[u] G[u]ᵀ)[t, t'], "ghost"; or
   the (p, d) gradient itself is formed, and kept or not. Where fp32 may be wrong (`floors.py`,
   `untrusted.py`) fp64 is asked again.
5. *Factors* (`unit_sums.py`, `clip_coefficients`). ‖g_u‖² is the sum over all parameters; the clipping
   function gives c_u ≤ C / ‖g_u‖; a unit that is not finite has c_u = 0. The coefficient is w_u · c_u · s.
6. *The sum* (`OuterProductGradient.weighted_sum`). Σ_u coefficient_u · Σ_t G[u, t]ᵀ A[u, t] is one product of
   two matrices, (coefficient · G)ᵀ A with tokens and units flattened: the only weight-sized product of the
   step, as in ordinary training (book-keeping, Bu et al. 2023, arXiv 2210.00038).

A parameter that no layer's rule knows is replaced by a `TrackedParameter` while the forward runs and followed
operator by operator until it meets the units (`_book_keeping/tracked_parameter.py`); what even that can't
attribute to units is an error before anything is released.
"""
