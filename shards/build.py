r"""Make shards from images, or index and verify existing ones.

python shards/build.py photos/ shards/mine                      every frame of every file is a scene
python shards/build.py scenes/ shards/mine --captures folder    every folder is a scene of two or more noisy captures
python shards/build.py stacks/ shards/mine --captures stack     every file is a scene, its frames are the captures
python shards/build.py films/ shards/mine --captures stack --frames consecutive     neighbouring frames are pairs
python shards/build.py all/ shards/mine --captures pattern '(?P<scene>.+)_(?P<capture>\d)' --clean '(?P<scene>.+)_gt'
python shards/build.py photos/ shards/mine --part 3/100         the third of 100 parts, for job arrays; then:
python shards/build.py index shards/mine                        merge the parts
python shards/build.py index shards/theirs                      index tars written by webdataset or tar
python shards/build.py verify shards/mine                       compare every tar with its digest

A folder of images that is itself called index or verify is given as ./index or ./verify.
"""

from n2n_dist.building.command import main
from n2n_dist.errors import run_command

if __name__ == "__main__":
    run_command(lambda: main(__doc__))
