"""Rows as the six benchmarks have them, small."""

DOCMATH = {
    "question_id": "complong-testmini-3",
    "source": "DocMath",
    "question": "What was the change in million dollars?",
    "paragraphs": ["The year 2018.", "| revenue | 5.2 |"],
    "ground_truth": -5.2,
}
FRAMES = {
    "ID": "7",
    "Prompt": "Who came first?",
    "Answer": "Jane Ballou",
    "reasoning_types": "Temporal reasoning | Multiple constraints",
    "wiki_items": [{"title": "Ballou", "text": "Jane Ballou came.", "link": "x"}, {"title": "B", "text": "Second."}],
}
LONGBENCH = {
    "_id": "a1",
    "input": "Are both villages in one country?",
    "context": "Passage 1:\nDameh\nA village.",
    "answers": ["no", "neither"],
    "dataset": "2wikimqa",
    "length": 5,
    "language": "en",
    "all_classes": None,
}
HOTPOT = {
    "_id": "h1",
    "question": "Which play?",
    "answer": "Cymbeline",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Tom", 0]],
    "context": [["Tom", ["He won. ", "A prize."]], ["Sea", ["Deep."]]],
}
TWO_WIKI = {
    "_id": "w1",
    "type": "comparison",
    "question": "Who died earlier?",
    "answer": "Ann",
    "evidences": [["Ann", "died", "1950"]],
    "context": [["Ann", ["She died in 1950."]]],
}
MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Which university?",
    "answer": "University of Toronto",
    "answer_aliases": ["UT"],
    "answerable": True,
    "paragraphs": [{"idx": 0, "title": "Ann", "paragraph_text": "She studied.", "is_supporting": True}],
    "question_decomposition": [{"id": 1, "question": "a", "answer": "b"}, {"id": 2, "question": "c", "answer": "d"}],
}
LONGBENCH_V2 = {
    "_id": "v1",
    "domain": "Single-Document QA",
    "sub_domain": "Legal",
    "difficulty": "hard",
    "length": "short",
    "question": "Which player?",
    "choice_A": "player_1",
    "choice_B": "player_3",
    "choice_C": "player_5",
    "choice_D": "player_7",
    "answer": "B",
    "context": "A game.",
}
ROWS = {
    "docmath": DOCMATH,
    "frames": FRAMES,
    "hotpotqa": HOTPOT,
    "2wikimqa": TWO_WIKI,
    "musique": MUSIQUE,
    "longbench_v2": LONGBENCH_V2,
}
