"""Schedulers of servables: which waiting calls an idle replica executes next.

`scheduler` is the contract; `one_by_one`, `dynamic` and `sequence` keep it. `queue` holds what waits and `merge` makes
one batch's tensors of many requests', for back ends that want them.
"""
