"""Which units can only be removed together: axis labels, operator rules, dependency groups.

Words used throughout:

* An *atom* stands for one entry of a labelled axis of a tensor (`labels.AxisLabel`).
* A *unit* is a set of atoms that are removed together; its id is the number of its smallest atom.
  Unit 0 is frozen: it is never removed.
* A *composite* is a unit without entries of its own: it is removed exactly when all its members
  are (a whole head, a whole group of a convolution).
* A *group* is a set of units that share axes or constraints; it numbers its units from 0.
* A *consumer* is a contraction that reads a labelled axis: a removal is compensated there.
* *Removed* and *kept* are said of units, atoms and entries alike.
"""
