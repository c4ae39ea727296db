"""A policy that is played on the small network under the eyes of a viewer."""

import numpy as np
from livenet import Cloud, three_exits

from eex.stream.driver import Driver
from eex.stream.frames.batch import Batch
from eex.stream.groups import every_exit
from eex.stream.run.play import Stage
from eex.stream.run.tally import Tally


def played(viewer, label, policy, batches=10):
    """Play a policy under the eyes of a viewer, which sees every exit of every batch."""
    net, tally = three_exits(), Tally(3)
    driver = Driver(net, policy, cloud := Cloud(), overhead=0.1)
    viewer.begin(Stage(label, policy, driver, cloud, tally))
    rng, found = np.random.default_rng(0), []
    for k in range(batches):
        images = net.array(rng.random((32, 3, 2, 2), dtype=np.float32))
        driver.feed(Batch(images, [f"{k}"] * 32, np.zeros(32, dtype=np.int64)))
        viewer.sample(32 * k, every_exit(net, images)[0])
        found.append(every_exit(net, images)[0])
        cloud.release()
        driver.drain()
        for rows in driver.take():
            tally.add(rows)
            viewer.finished(rows)
        viewer.refresh()
    return np.concatenate(found), tally
