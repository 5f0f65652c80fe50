"""What counts how, in words: goes with every table, so that no figure rests on an unsaid rule."""

RULES = {
    "lesion": "of masks without CASE.json a connected component (26 neighbours) of one value, "
    "score 1, source unknown",
    "hit": "greedy by falling score: each prediction takes the annotated lesion that it overlaps "
    "most among those still free, if their mask IoU reaches .1 (.3, .5); the others are false "
    "positives, second hits of a lesion too; boxes are compared with boxes around the lesions",
    "centre_hit": "the same, where the prediction's centre of mass (nearest voxel) lies in the "
    "annotated lesion, whatever their IoU",
    "froc": "highest sensitivity of any score threshold with at most so many false positives per "
    "scan, all scans counted, no interpolation; CPM: mean at 1/8, 1/4, 1/2, 1, 2, 4, 8",
    "average_precision": "precision times gain in recall, no interpolation; lesions without a "
    "candidate stay missed",
    "dsc": "both empty 1, one empty 0; a missed lesion 0",
    "nsd": "share of both surfaces, by area, within 1 or 2 mm of the other; both empty 1, one "
    "empty 0; a missed lesion 0",
    "hd95": "distance within which 95 % of the area of each surface lies, the larger of the two; "
    "left out and counted where reference or prediction is empty, and for missed lesions",
    "voxel_sensitivity": "left out and counted where the reference is empty",
    "volume_bias": "predicted minus annotated, empty masks 0 ml",
    "patient": "mean over the patient's scans that have a value; highest probability, positive if "
    "any scan is, else unknown if any is",
    "no_value": "a figure without a value says why; none is NaN or counted as 0 unless said here",
}
"""Rule by name, as in `metrics.json`."""

RULES_IN_SHORT = (
    "rules: DSC and NSD 1 if both masks are empty, 0 if one is or the lesion is missed; HD95 and "
    "voxel sensitivity leave empties out and count them; a hit is mask IoU >= .1, greedy by score; "
    "scans without lesions count for false positives. All of them: metrics.json"
)
