"""Report on shards: digests, clipping, noise, and what breaks Noise2Noise between captures.

python shards/audit.py shards/mine                        a table, and shards/mine/audit/{audit.json,audit.png}
python shards/audit.py shards/mine --output reports/mine
"""

from n2n_dist import cli
from n2n_dist.errors import run_command

if __name__ == "__main__":
    run_command(lambda: cli.run("audit", __doc__))
