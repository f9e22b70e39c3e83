"""Transfer to detection, segmentation and keypoints: annotated data sets, and measures."""

from ssl_zoo.transfer.metrics import (
    Measures,
    coco_measures,
    coco_results,
    confusion,
    overlap_measures,
    voc_measures,
)
from ssl_zoo.transfer.sets.cityscapes import Cityscapes
from ssl_zoo.transfer.sets.coco import COCO, LVIS
from ssl_zoo.transfer.sets.voc import VOC
from ssl_zoo.transfer.source import ANNOTATED, IGNORED, AnnotatedSet, learnable
from ssl_zoo.transfer.tree_crowns import TreeCrowns
