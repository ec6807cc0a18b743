"""How several processes share the tests: pytest-xdist's `--dist loadgroup`, with groups and an order."""

import re

import pytest

import harness


def share_out(items):
    """Tests that have a server in common go to one process, and what takes long goes first, so that no process is alone
    at the end."""
    users = {str(getattr(harness, name)): name for name in ("ALICE", "BOB", "CAROL")}
    for item in items:
        # A test must have the same name in each process, and its parameters may have users of this one.
        item._nodeid = re.sub(r"\d{4,}", lambda found: users.get(found[0], found[0]), item.nodeid)
        common = sorted(name for name in item.fixturenames if scope_of(item, name) in ("module", "class"))
        if common:
            arguments = getattr(item, "callspec", None)
            values = [str(arguments.params[name]) for name in common if arguments and name in arguments.params]
            item.add_marker(pytest.mark.xdist_group("-".join([item.path.stem, *common, *values])))

    def first(item):
        """Seconds that it may take; of the others, the groups, each of which is many tests."""
        limit = item.get_closest_marker("timeout")
        return -(limit.args[0] if limit else 0), item.get_closest_marker("xdist_group") is None

    items.sort(key=first)


def scope_of(item, fixture):
    found = item._fixtureinfo.name2fixturedefs.get(fixture)
    return found[-1].scope if found else None


def scheduler(config, log):
    """As xdist's own, but for what happens when a process dies.

    Its own gives the test that was running to another process, which dies of it too, or gives a single test to a process
    that does not begin with it before it has a second one, and waits for ever.
    """
    from xdist.scheduler.loadgroup import LoadGroupScheduling

    class Scheduling(LoadGroupScheduling):
        def remove_node(self, node):
            units = self.assigned_work.pop(node)
            left = [(unit, test) for unit in units.values() for test, is_done in unit.items() if not is_done]
            if not left:
                return None
            unit, fatal = left[0]
            unit[fatal] = True
            self.workqueue.update({scope: unit for scope, unit in units.items() if not all(unit.values())})
            for other in self.assigned_work:
                self._reschedule(other)
            return fatal

        def _reschedule(self, node):
            while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) <= 2:
                self._assign_work_unit(node)
            if not self.workqueue and not node.shutting_down:
                node.shutdown()

    return Scheduling(config, log)
