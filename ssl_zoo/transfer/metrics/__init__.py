"""How good detections and semantic maps are, in percent: VOC's, COCO's and LVIS's AP, mIoU."""

from ssl_zoo.transfer.metrics.coco import coco_measures, coco_results
from ssl_zoo.transfer.metrics.measures import Measures
from ssl_zoo.transfer.metrics.semantic import confusion, overlap_measures
from ssl_zoo.transfer.metrics.voc import voc_measures
