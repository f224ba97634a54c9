"""Sets of units between whose producers and readers all is linear and acts on each of them alike.

Values of heads on their way through the attention average to the output projection, queries and
keys on their way to their product, a convolution that follows another without an activation: what
a matrix T does to the units where they are made, its inverse undoes where they are read.

No pattern is looked for. Units that share all their rows form a set; every node at which one of
them appears has to be of a kind known to be linear and alike, with the whole set at its place.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.labels import Layer
from onnxprune.coupling.step import node_id
from onnxprune.reconstruction.contractions import letters_of
from onnxprune.reconstruction.find import MOVEMENTS, replaceable_layers
from onnxprune.reconstruction.unit_places import Places, copies_of, places_of
from onnxprune.surgery.linear import LINEAR_OPS
