# SPDX-License-Identifier: BSD-3-Clause
"""How the shards of a run are shared: by processes of one machine (`local`), or by a Ray cluster (`ray`)."""
