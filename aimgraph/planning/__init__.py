"""The plan as data: sites, reads, costs and how they are shown. Nothing here touches a graph."""
