"""The words that names of structures are made of.

Contours are named in free text, and no rule can tell a nickname, a tattoo or a place from a structure if the header
does not mention it. Without a name map, a dataset therefore contains only names made of these words: those of TG-263,
of TotalSegmentator and of radiotherapy planning. All other names have to be explained in a name map.
"""

from __future__ import annotations

import re

_WORDS = frozenset(
    """
    abdomen abdominal accessory acetabulum acoustic adrenal airway airways alveolar ampulla anal ankle anorectum
    anterior anus aorta aortic appendage appendix arch areola arm arteries artery ascending atlas atria atrial
    atrium auricle autochthon axilla axillary axis back bag basal base bile bladder bladderwall blood body bolus
    bone bones bowel brachial brachiocephalic brachium brain brainstem breast bronchi bronchus buccal buccinator
    bulb calcaneus calcification canal canals cardiac carina carotid cartilage cartilages cauda caudate cava
    cavities cavity cecum celiac central cerebellum cerebral cerebrum cervical cervix chamber chest chestwall
    chiasm chin clavicle clavicula coccyx cochlea colon common conal condyle contralateral cord cornea coronary
    corpus cortex costal cranial cranium cricoid cricopharyngeus ct ctv cyst deep deltoid descending diaphragm
    digastric disc discs distal dorsal duct ductus duodenum dura ear ears edema elbow enamel epiglottis equina
    esophageal esophagus ethmoid extern external eye eyeball eyes face facial falx fat femoral femur fibula
    fissure flank fluid fold foot foramen forearm fossa frontal gallbladder gland glands globe glottic glottis
    gluteus great groin gtv gut gyrus hand hard head heart hemisphere hepatic hilum hip hippocampus humerus
    hyoid hypopharynx hypothalamus ileum iliac iliacus iliopsoas ilium implant inferior infraglottic inguinal
    inner internal intervertebral intestine intestines ipsilateral iris ischium itv jaw jejunum joint jugular
    junction kidney kidneys knee lacrimal lad landmark larynx lateral left leg legs lens lenses lesion ligament
    limb lip lips liver lobe lobes lobus local lower lumbar lung lungs lymph lymphatic lymphnode lymphnodes main
    major mandible manubrium masseter mastoid maxilla maxillary maximus meatus medial mediastinal mediastinum
    medius medulla meninges mesentery mesorectum metastasis mid middle midline minimus minor mitral molar mouth
    mucosa muscle muscles musculus nasal nasopharynx neck nerve nerves nodal node nodes nodule nose nostril
    oblique obturator occipital oesophagus omentum optic oral orbit orbits oropharynx outer outline oval ovaries
    ovary palate pancreas paraspinal parietal parotid parotids patella pectoralis pelvic pelvis penilebulb penis
    pericardium peritoneum petrous phalanx pharyngeal pharynx phrenic pituitary plate pleura plexus portal
    posterior postop primary process prostate prostatebed proximal prv psoas pterygoid ptv pubic pubis pulmonary
    pylorus pyriform quadratus radius ramus rectal rectum renal retina retroperitoneum retropharyngeal rib ribs
    right ring sacral sacrum saliva scalene scalp scapula sciatic sclera scrotum segment sella seminal septum
    sheath shell shin shoulder sigmoid sinus sinuses skeleton skin skull small soft sphenoid sphincter spinal
    spinalcanal spinalcord spine spinous spleen splenic spongiosum stem sternal sternocleidomastoid sternum
    stomach subclavian subcutaneous sublingual submandibular sulcus superficial superior supraclavicular
    supraglottic suprarenal talus target teeth temporal temporalis temporomandibular tendon testes testicle
    testis thalamus thigh third thoracic thorax thymus thyroid tibia tip tissue tongue tonsil tonsils tooth
    trachea transverse trapezius tree trigeminal trochanter trunk tube tumor tumour turbinate tympanic ulna
    upper ureter ureters urethra urinary uterine uterus uvula vagal vagina valve valves vein veins vena ventral
    ventricle ventricles vermis vertebra vertebrae vertebral vesicle vesicles vessel vessels vestibular vocal
    volume vomer vulva wall whole womb wrist zygoma zygomatic
    and of to with without non minus plus contrast artifact air water total all avoid combined union exp opt
    eval crop l r lt rt a p s i m d v n o x lul lll rul rml rll svc ivc lca rca lv rv la ra gi cns smv sma pa ln
    abdominis arytenoid arytenoids first glnd nrv rectus second submand
    gtvp gtvn ctvp ctvn ptvn ptvp igtv oar roi bst c t st h low high dose level mm cm
    """.split()
)
# A run of letters, or a number as in C7, T12 and rib_10. Vertebrae and dose levels have up to four digits.
_PARTS = re.compile(r"[^\W\d_]+|\d+|[\W_]+")


def is_anatomical(name: str) -> bool:
    """Whether a name consists of words of anatomy and planning and of numbers with at most four digits (no years)."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    for part in _PARTS.findall(spaced):
        if part.isdigit():
            if len(part) > 4 or re.fullmatch("(19|20)[0-9][0-9]", part):
                return False
        elif part.isalpha() and not _known(part.lower()):
            return False
    return any(c.isalpha() for c in name)


def _known(word: str) -> bool:
    """Whether a word is known, or consists of two known words ("lungleft", "spinalcanal")."""
    if word in _WORDS or word.rstrip("s") in _WORDS:
        return True
    return any(word[:i] in _WORDS and word[i:] in _WORDS for i in range(3, len(word) - 2))
