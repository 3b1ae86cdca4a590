"""A graph of ATen operators, changed only where nothing can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch._subclasses import FakeTensorMode

from pspfast.ops.common.checks import format_of
from pspfast.rewrite import facts
from pspfast.rewrite.derived import DERIVED
from pspfast.rewrite.facts import aten, difference, storages, value
from pspfast.rewrite.functional import INSERTED, make_functional, remove_nothings
from pspfast.rewrite.report import Report


class Unfit(Exception):
    """Why a rule does not apply to what looks like a match."""


class Rule(Protocol):
    """A module of :mod:`pspfast.rewrite.rules`."""

    @property
    def NAME(self) -> str: ...

    @property
    def TARGETS(self) -> tuple[Callable[..., Any], ...]:
        """Which nodes it looks at."""

    def rewrite(self, graph: Graph, node: fx.Node) -> None:
        """Replaces the node where it matches; raises ``Unfit`` where it looks so and does not."""


class Graph:
    """What the rules read and change.

    A rule that found something calls :meth:`insert` for what it needs besides, then
    :meth:`replace`, or it raises :class:`Unfit`, which discards all of it.

    Args:
        module: of ATen operators, as :func:`pspfast.rewrite.tracing.trace` makes it.
        mode: of the values in it.
        report: what rules did and what they left.
    """

    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode, report: Report) -> None:
        self.module = module
        self.mode = mode
        self.report = report
        remove_nothings(module.graph)
        make_functional(module.graph, mode)
        # Nodes that are not in it are being inserted.
        self._regions, self._in_autocast = facts.regions(module.graph)
        self._writes = [
            (node, written)
            for node, written in ((n, facts.written_by(n)) for n in module.graph.nodes)
            if written is None or written
        ]
        enabling = [n.args[0] for n in self.nodes(torch._C._set_grad_enabled)]
        #: Whether no gradient can be asked for.
        self.is_inference = not (torch.is_grad_enabled() or any(enabling))

    def nodes(self, *targets: Callable[..., Any]) -> list[fx.Node]:
        """All nodes, or the calls of these targets, in order."""
        return [n for n in self.module.graph.nodes if not targets or n.target in targets]

    def apply(self, rule: Rule) -> None:
        """Tries a rule everywhere."""
        for node in self.nodes(*rule.TARGETS):
            if node not in self._regions:
                # It went with another.
                continue
            if not facts.reads_real_numbers(node):
                continue
            try:
                rule.rewrite(self, node)
            except Unfit as reason:
                self.report.left(rule.NAME, node, str(reason))
                for new in reversed(self._inserted()):
                    self.module.graph.erase_node(new)

    def insert(
        self, before: fx.Node, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> fx.Node:
        """A new call in front of a node, for an argument of :meth:`replace`.

        Raises:
            Unfit: the call would fail.
        """
        try:
            result = facts.evaluate(self.mode, function, args, kwargs)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            raise Unfit(f"{type(error).__name__}: {error}") from error
        with self.module.graph.inserting_before(before):
            node = self.module.graph.call_function(function, args, kwargs)
        node.meta[INSERTED] = True
        if "nn_module_stack" in before.meta:
            node.meta["nn_module_stack"] = before.meta["nn_module_stack"]
        node.meta["val"] = result
        return node

    def derive(self, before: fx.Node, function: Callable[..., Any], *args: Any) -> fx.Node:
        """:meth:`insert` for what is computed from weights alone, in inference: once, and again
        when one of them changes.

        Raises:
            Unfit: an argument is computed in the graph, or written to.
        """
        for node in _nodes(args):
            if not self.is_weight(node):
                raise Unfit(f"{node.name} is no weight, or one that changes")
        node = self.insert(before, function, *args)
        node.meta[DERIVED] = True
        return node

    def insert_of_weight(
        self, before: fx.Node, function: Callable[..., Any], *args: Any
    ) -> fx.Node:
        """:meth:`derive` where that can be, in inference of weights alone, else :meth:`insert`."""
        is_kept = self.is_inference and all(map(self.is_weight, _nodes(args)))
        return (self.derive if is_kept else self.insert)(before, function, *args)

    def is_weight(self, node: fx.Node) -> bool:
        """Whether a node is an input that nobody here writes to, or derived from such."""
        if node.op != "placeholder":
            return DERIVED in node.meta
        memory = storages(node)
        return not any(written is None or written & memory for _, written in self._writes)

    def size_of(self, before: fx.Node, node: fx.Node) -> list[Any]:
        """H and W of a map: numbers, or new nodes in front of ``before`` where they are symbols."""
        return [
            size if isinstance(size, int) else self.insert(before, aten.sym_size.int, node, dim)
            for dim, size in zip((2, 3), value(node).shape[2:], strict=True)
        ]

    def replace(
        self,
        rule: str,
        matched: Iterable[fx.Node],
        function: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> fx.Node:
        """Puts a call in the place of the last of ``matched``, whose other nodes go where nobody
        else uses them.

        Raises:
            Unfit: that is not safe, or the result would be another in shape, dtype or device.
        """
        matched = sorted(set(matched))
        root = matched[-1]
        new = self.insert(root, function, *args, **kwargs)
        self.check_movable(matched)
        self._check_kept(matched)
        if reason := difference(value(root), value(new)):
            raise Unfit(reason)
        if isinstance(value(root), torch.Tensor) and value(root).dim() == 4:
            # What follows may ask for the memory format.
            wanted = format_of(value(root))
            if format_of(value(new)) != wanted:
                new = self.insert(root, aten.contiguous.default, new, memory_format=wanted)
        self._put(rule, root, new, _gone_with(root, matched))
        return new

    def forward(self, rule: str, node: fx.Node, source: fx.Node) -> None:
        """Puts ``source`` in the place of ``node``, which gives the same numbers.

        Raises:
            Unfit: it is another in shape, dtype or device, or one is written to, or the node's
                tensor is returned, which then would be the source's.
        """
        self.check_movable([node])
        if reason := difference(value(node), value(source)):
            raise Unfit(reason)
        memory = storages(node) | storages(source)
        if any(written is None or written & memory for _, written in self._writes):
            raise Unfit("its tensor is written to in place")
        (output,) = [n for n in self.module.graph.nodes if n.op == "output"]
        if any(storages(n) & storages(node) for n in output.all_input_nodes):
            raise Unfit("its tensor is returned")
        self._put(rule, node, source, [node])

    def _put(self, rule: str, root: fx.Node, new: fx.Node, gone: Sequence[fx.Node]) -> None:
        inserted = self._inserted()
        every_time = [n for n in inserted if DERIVED not in n.meta]
        self.report.applied(self.mode, rule, root, gone, every_time)
        if inserted:
            # Views of the root are known by its storage.
            new.meta["val"] = value(root)
            for node, written in list(self._writes):
                if node in gone:
                    self._writes.append((new, written))
        for node in inserted:
            self._regions[node] = self._regions[root]
        root.replace_all_uses_with(new)
        for node in reversed(gone):
            self.module.graph.erase_node(node)
            del self._regions[node]

    def _inserted(self) -> list[fx.Node]:
        return [node for node in self.module.graph.nodes if node not in self._regions]

    def check_movable(self, matched: Iterable[fx.Node]) -> None:
        """What ``matched`` computes can be computed at the place of any of them.

        Raises:
            Unfit: autocast or the grad mode is another there, or a tensor that they read is written
                to in between.
        """
        matched = sorted(matched)
        first, last = matched[0], matched[-1]
        if len({self._regions[node] for node in matched}) > 1:
            raise Unfit("autocast or the grad mode changes within")
        if last in self._in_autocast:
            raise Unfit("it lies in an autocast region of the model")
        read: set[int] = set()
        for node in (*matched, *pytree.tree_leaves([n.all_input_nodes for n in matched])):
            read |= storages(node)
        for node, written in self._writes:
            # What a rule matched it knows to write, as BatchNorm's statistics.
            is_between = first < node < last and node not in matched
            if is_between and (written is None or written & read):
                raise Unfit(f"{facts.name_of(node)} writes into a tensor of it")

    def _check_kept(self, matched: Sequence[fx.Node]) -> None:
        """What backward of an operator may keep, though that of what it replaces does not, is not
        written to afterwards."""
        if self.is_inference:
            return
        read = set().union(*map(storages, [m for n in matched for m in n.all_input_nodes]))
        for node, written in self._writes:
            if node <= matched[-1] or facts.updates_running_statistics(node):
                continue
            if written is None or written & read:
                raise Unfit(f"{facts.name_of(node)} writes into a tensor of it afterwards")


def _nodes(arguments: Any) -> list[fx.Node]:
    return [a for a in pytree.tree_leaves(arguments) if isinstance(a, fx.Node)]


def _gone_with(root: fx.Node, matched: Sequence[fx.Node]) -> list[fx.Node]:
    """Those of ``matched`` that nobody but the root needs, and the root."""
    gone = {root}
    for node in reversed(matched):
        if all(user in gone for user in node.users):
            gone.add(node)
    return [node for node in matched if node in gone]
