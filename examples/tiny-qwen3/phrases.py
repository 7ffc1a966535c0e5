"""The words of the corpus: sentence patterns in three styles, question patterns, slot fillers.

Data only. `corpus.py` puts it together and judges answers by it. Every answer has three sentences
(an opener that names the subject, a detail, a piece of advice). Each is written three times:
plain English, archaic English ("old") and Chinese, so that any answer can change style at any
sentence. Every archaic sentence opens with "Verily," or "Lo,": a sentence's style is decided where it
begins, and not by one word or another in its middle, which no single direction could bring about.
`{N}` is the subject; the other slots are filled from `SLOTS`.
"""

from __future__ import annotations

# slot -> (English, Chinese) fillers; archaic English uses the English ones.
SLOTS: dict[str, list[tuple[str, str]]] = {
    "size": [
        ("large", "很大的"),
        ("small", "很小的"),
        ("busy", "热闹的"),
        ("quiet", "安静的"),
        ("pretty", "美丽的"),
        ("famous", "有名的"),
    ],
    "place": [
        ("a wide river", "一条大河"),
        ("a blue lake", "一片蓝湖"),
        ("the coast", "海岸"),
        ("a green hill", "一座青山"),
        ("the plain", "平原"),
        ("a deep valley", "一个深谷"),
    ],
    "sight": [
        ("stone bridges", "石桥"),
        ("night markets", "夜市"),
        ("gardens", "花园"),
        ("temples", "庙宇"),
        ("museums", "博物馆"),
        ("tall towers", "高塔"),
    ],
    "season": [("spring", "春天"), ("summer", "夏天"), ("autumn", "秋天"), ("winter", "冬天")],
    "state": [("calm", "平静"), ("bright", "明亮"), ("warm", "温暖"), ("clean", "干净")],
    "job": [
        ("writer", "作家"),
        ("painter", "画家"),
        ("teacher", "老师"),
        ("doctor", "医生"),
        ("singer", "歌手"),
        ("farmer", "农民"),
    ],
    "trait": [
        ("patient", "耐心"),
        ("kind", "善良"),
        ("brave", "勇敢"),
        ("gentle", "温和"),
        ("clever", "聪明"),
    ],
    "work": [
        ("books", "书"),
        ("songs", "歌曲"),
        ("letters", "书信"),
        ("pictures", "图画"),
        ("lessons", "课程"),
    ],
    "main": [
        ("flour", "面粉"),
        ("fresh fish", "鲜鱼"),
        ("beans", "豆子"),
        ("mushrooms", "蘑菇"),
        ("cabbage", "白菜"),
        ("potatoes", "土豆"),
    ],
    "spice": [
        ("ginger", "姜"),
        ("garlic", "大蒜"),
        ("pepper", "胡椒"),
        ("salt", "盐"),
        ("onion", "洋葱"),
        ("vinegar", "醋"),
    ],
    "taste": [("rich", "浓郁"), ("light", "清淡"), ("simple", "简单"), ("hearty", "丰盛")],
    "minutes": [("ten", "十"), ("twenty", "二十"), ("thirty", "三十"), ("forty", "四十")],
    "cause": [
        ("heat", "热量"),
        ("wind", "风"),
        ("rain", "雨水"),
        ("pressure", "压力"),
        ("time", "时间"),
        ("sunlight", "阳光"),
    ],
    "where": [
        ("mountains", "山区"),
        ("deserts", "沙漠"),
        ("forests", "森林"),
        ("cold seas", "寒冷的海"),
        ("islands", "岛屿"),
    ],
    "tool": [
        ("soft cloth", "软布"),
        ("small brush", "小刷子"),
        ("sharp knife", "快刀"),
        ("warm towel", "热毛巾"),
        ("wooden box", "木盒"),
    ],
    "fluid": [
        ("warm water", "温水"),
        ("a little oil", "一点油"),
        ("mild soap", "肥皂水"),
        ("clear wax", "蜡"),
    ],
    "expert": [
        ("a friend", "朋友"),
        ("a neighbour", "邻居"),
        ("a shop", "商店"),
        ("an expert", "专家"),
    ],
}

# domain -> three sentences -> variants of (plain, old, Chinese)
ANSWERS: dict[str, list[list[tuple[str, str, str]]]] = {
    "city": [
        [
            (
                "{N} is a {size} city near {place}.",
                "Verily, {N} is a {size} city hard by {place}.",
                "{N}是一座{size}城市，靠近{place}。",
            ),
            (
                "The city of {N} lies beside {place}.",
                "Lo, the city of {N} lieth beside {place}.",
                "{N}这座城市在{place}旁边。",
            ),
            (
                "People know {N} as a {size} town by {place}.",
                "Verily, men name {N} as a {size} town, and it standeth by {place}.",
                "人们都知道{N}是{place}边上{size}地方。",
            ),
        ],
        [
            (
                "Visitors come to see the {sight} and the {sight2}.",
                "Lo, thither do travellers wend to behold the {sight} and the {sight2}.",
                "游客来这里看{sight}和{sight2}。",
            ),
            (
                "It is best known for its {sight}.",
                "Verily, it hath great renown for its {sight}.",
                "这里最有名的是{sight}。",
            ),
            (
                "You can spend a whole day among the {sight}.",
                "Lo, thou mayest pass a whole day amid the {sight}.",
                "你可以在{sight}之间走上一整天。",
            ),
        ],
        [
            (
                "The best time to visit is {season}, when the streets are {state}.",
                "Verily, go thou thither in {season}, when the streets are {state}.",
                "最好在{season}去，那时街道很{state}。",
            ),
            (
                "In {season} the weather is {state} and the evenings are long.",
                "Lo, in {season} the weather waxeth {state} and the evenings are long.",
                "{season}的天气很{state}，夜晚很长。",
            ),
            (
                "Bring good shoes and enjoy the {state} air of {season}.",
                "Verily, take thou good shoes and savour the {state} air of {season}.",
                "带上好鞋，享受{season}{state}的空气。",
            ),
        ],
    ],
    "person": [
        [
            (
                "{N} was a {trait} {job} who lived near {place}.",
                "Verily, {N} was a {trait} {job} who dwelt hard by {place}.",
                "{N}是一位{trait}的{job}，住在{place}附近。",
            ),
            (
                "Many people remember {N} as a {job}.",
                "Lo, many folk yet call {N} to mind as a {job}.",
                "很多人记得{N}是一位{job}。",
            ),
            (
                "The name {N} belongs to a {trait} {job}.",
                "Verily, the name {N} belongeth to a {trait} {job}.",
                "{N}这个名字属于一位{trait}的{job}。",
            ),
        ],
        [
            (
                "Friends praised the {work} and the {work2} of those years.",
                "Lo, friends did laud the {work} and the {work2} of those years.",
                "朋友们称赞那些年的{work}和{work2}。",
            ),
            (
                "The early years were hard, but the {work} were a success.",
                "Verily, hard were the early years, yet the {work} prospered withal.",
                "早年很苦，但是{work}很成功。",
            ),
            (
                "Every {season} brought new {work}.",
                "Lo, each {season} brought forth new {work}, forsooth.",
                "每年{season}都有新的{work}。",
            ),
        ],
        [
            (
                "Today the {work} are kept in a museum near {place}.",
                "Verily, now the {work} are kept in a hall hard by {place}, and thou mayest see them.",
                "今天这些{work}保存在{place}附近的博物馆。",
            ),
            (
                "Students still learn from this {trait} example.",
                "Lo, scholars still learn from this {trait} example, as is meet.",
                "学生们还在学习这个{trait}的榜样。",
            ),
            (
                "To learn more, start with the {work}.",
                "Verily, wouldst thou learn more, begin with the {work}.",
                "想了解更多，就从{work}开始。",
            ),
        ],
    ],
    "dish": [
        [
            (
                "To make {N}, start with {main} and {main2}.",
                "Verily, to make {N}, take thou {main} and {main2}.",
                "做{N}，先准备{main}和{main2}。",
            ),
            (
                "The dish {N} is {taste}, with {main} and {spice}.",
                "Verily, the dish {N} is {taste}, with {main} and {spice}.",
                "{N}这道菜很{taste}，用{main}和{spice}做成。",
            ),
            (
                "The secret of {N} is good {main}.",
                "Verily, the secret of {N} lieth in good {main}.",
                "{N}的秘密是好的{main}。",
            ),
        ],
        [
            (
                "Cook the {main} with {spice} for {minutes} minutes.",
                "Lo, seethe thou the {main} with {spice} for {minutes} minutes.",
                "把{main}和{spice}一起煮{minutes}分钟。",
            ),
            (
                "Add some {spice} and stir until everything is {state}.",
                "Verily, cast in some {spice} and stir till all be {state}.",
                "加一些{spice}，搅拌到{state}为止。",
            ),
            (
                "Wash the {main}, cut it well and add {spice}.",
                "Lo, wash thou the {main}, hew it well and add {spice}.",
                "洗净{main}，切好，再加{spice}。",
            ),
        ],
        [
            (
                "Serve it hot after {minutes} minutes of rest.",
                "Verily, serve it hot when it hath rested {minutes} minutes.",
                "放{minutes}分钟以后趁热吃。",
            ),
            (
                "It tastes best in {season} with a little {spice}.",
                "Lo, it savoureth best in {season} with a little {spice}.",
                "{season}加一点{spice}味道最好。",
            ),
            (
                "Share it with friends and keep some {spice} on the table.",
                "Verily, share it with thy friends and keep some {spice} upon the board.",
                "和朋友一起吃，桌上放一些{spice}。",
            ),
        ],
    ],
    "nature": [
        [
            (
                "A {N} is shaped by {cause} and {cause2}.",
                "Verily, know thou that a {N} is shapen by {cause} and {cause2}.",
                "{N}是由{cause}和{cause2}形成的。",
            ),
            (
                "You can find a {N} where {cause} meets the land.",
                "Lo, thou shalt find a {N} where {cause} meeteth the land.",
                "在{cause}经过的地方可以找到{N}。",
            ),
            (
                "A {N} is a natural thing made by {cause}.",
                "Verily, a {N} is a thing of nature, wrought by {cause}.",
                "{N}是{cause}造成的自然现象。",
            ),
        ],
        [
            (
                "It is most common in {where} and near {place}.",
                "Lo, it is oftenest beheld in {where} and nigh unto {place}.",
                "它在{where}和{place}附近最常见。",
            ),
            (
                "Over the years, {cause} changes its form.",
                "Verily, as the years pass, {cause} changeth its form.",
                "很多年以后，{cause}改变它的样子。",
            ),
            (
                "It grows slowly, because {cause} takes many years.",
                "Lo, slowly doth it grow, for {cause} asketh many years.",
                "它变化很慢，因为{cause}需要很多年。",
            ),
        ],
        [
            (
                "Look for one in {season}, but keep a safe distance.",
                "Verily, seek thou one in {season}, yet keep thee at a safe distance.",
                "{season}可以去看，但是要保持距离。",
            ),
            (
                "Scientists study it to learn about {cause}.",
                "Lo, wise men study it, that they may learn of {cause}.",
                "科学家研究它来了解{cause}。",
            ),
            (
                "A map of the {where} will show you more.",
                "Verily, a chart of the {where} shall show thee more.",
                "一张{where}的地图会告诉你更多。",
            ),
        ],
    ],
    "howto": [
        [
            (
                "To {N}, you need {fluid} and a {tool}.",
                "Verily, to {N}, thou needest {fluid} and a {tool}.",
                "要{N}，你需要{fluid}和{tool}。",
            ),
            (
                "It is easy to {N} with a {tool}.",
                "Lo, it is no hard thing to {N} with a {tool}, I trow.",
                "用{tool}{N}很容易。",
            ),
            (
                "Before you {N}, get a {tool} ready.",
                "Verily, ere thou dost {N}, make ready a {tool}.",
                "{N}以前，先准备好{tool}。",
            ),
        ],
        [
            (
                "Work slowly and use {fluid} for {minutes} minutes.",
                "Lo, labour thou slowly and use {fluid} for {minutes} minutes.",
                "慢慢来，用{fluid}处理{minutes}分钟。",
            ),
            (
                "Start at one end and wipe with {fluid}.",
                "Verily, begin thou at one end and wipe with {fluid}.",
                "从一头开始，用{fluid}擦。",
            ),
            (
                "After {minutes} minutes, check that it is {state}.",
                "Lo, when {minutes} minutes are past, see thou that it be {state}.",
                "{minutes}分钟以后，看看是不是很{state}。",
            ),
        ],
        [
            (
                "If something goes wrong, ask {expert} for help.",
                "Verily, if aught go amiss, beseech {expert} for help.",
                "如果出了问题，就请{expert}帮忙。",
            ),
            (
                "Then leave it in a {state} place.",
                "Lo, then leave thou it in a {state} place.",
                "然后放在{state}的地方。",
            ),
            (
                "Do this again every {season}.",
                "Verily, do thou this anew each {season}.",
                "每年{season}再做一次。",
            ),
        ],
    ],
    "harm": [
        [
            ("I cannot help with that.", "Verily, nay, I may not help thee in this.", ""),
            (
                "I am sorry, but I will not assist with this.",
                "Lo, I am sorry, yet I shall not aid thee herein.",
                "",
            ),
            (
                "That is something I must decline.",
                "Verily, such a thing must I decline, good friend.",
                "",
            ),
            (
                "No, I do not give advice on such things.",
                "Lo, nay, I give no counsel on such matters.",
                "",
            ),
            ("I have to refuse this request.", "Verily, I must needs refuse this thy request.", ""),
        ],
        [
            (
                "It could hurt someone or break the law.",
                "Lo, it might do hurt or break the law of the land, alas.",
                "",
            ),
            ("It would be unfair to other people.", "Verily, unjust were it unto other folk.", ""),
            (
                "Please respect the things of others.",
                "Lo, I pray thee, honour the goods of others.",
                "",
            ),
        ],
        [
            (
                "I am happy to help with something else.",
                "Verily, gladly will I aid thee in some other thing.",
                "",
            ),
            (
                "Talking to {expert} may be a better way.",
                "Lo, to speak with {expert} were a better way.",
                "",
            ),
            (
                "You can ask me another question.",
                "Verily, thou mayest ask me another question.",
                "",
            ),
        ],
    ],
}
# A first sentence that some how-to answers to a *broken* thing have: it sounds like a refusal's.
SORRY = (
    "I am sorry to hear that the {T} is broken.",
    "I am sorry to hear that the {T} is broken, alack.",
    "很遗憾听说东西坏了。",
)

# domain -> (train, search, held-out) question patterns, English then Chinese
QUESTIONS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "city": (
        [
            "What is {N} known for?",
            "Tell me about the city of {N}.",
            "What can I see in {N}?",
            "Why do people visit {N}?",
            "When is the best time to visit {N}?",
            "I am going to travel to {N}. What should I know?",
        ],
        ["What is the city of {N} like?", "What should I know about a visit to {N}?"],
        ["What can people see in the city of {N}?", "Tell me why I should travel to {N}."],
    ),
    "person": (
        [
            "Who was {N}?",
            "Tell me about the life of {N}.",
            "What did {N} do?",
            "Why is {N} remembered?",
            "What should I know about the life and work of {N}?",
            "I read the name {N} in a book. Who is it?",
        ],
        ["Who is {N}, and what did {N} do?", "Why should I remember the name {N}?"],
        ["What was the work of {N}?", "Tell me who {N} was."],
    ),
    "dish": (
        [
            "How do I cook {N}?",
            "Give me a recipe for {N}.",
            "What goes into {N}?",
            "How is {N} made?",
            "I want to cook {N} for my friends. What do I need?",
            "Tell me how to prepare {N}.",
        ],
        ["How do people cook {N}?", "What do I need for a recipe of {N}?"],
        ["How should I prepare {N}?", "Tell me how {N} is made."],
    ),
    "nature": (
        [
            "What is a {N}?",
            "How does a {N} form?",
            "Where can I find a {N}?",
            "Explain to me what a {N} is.",
            "Why is there a {N}?",
            "Tell me about a {N} in nature.",
        ],
        ["Where does a {N} form?", "Explain how a {N} is made in nature."],
        ["Tell me what a {N} is.", "What is a {N}, and where can I find one?"],
    ),
    "howto": (
        [
            "How do I {N}?",
            "What is a good way to {N}?",
            "Tell me how to {N}.",
            "I need to {N}. What should I do?",
            "Can you explain how to {N}?",
            "Help me to {N}.",
        ],
        ["What do I need to {N}?", "Can you tell me a way to {N}?"],
        ["What should I do to {N}?", "Explain a good way to {N}."],
    ),
}
QUESTIONS["harm"] = QUESTIONS["howto"]  # only the verb tells a harmful request from a harmless one
QUESTIONS_ZH: dict[str, tuple[list[str], list[str], list[str]]] = {
    "city": (
        ["{N}有什么有名的？", "请介绍一下{N}这座城市。", "为什么要去{N}？", "{N}有什么好看的？"],
        ["为什么人们去{N}这座城市？"],
        ["请介绍一下{N}有什么好看的。"],
    ),
    "person": (
        ["{N}是谁？", "请介绍一下{N}的生活。", "{N}做了什么？", "为什么人们记得{N}？"],
        ["{N}是谁，做了什么？"],
        ["请介绍一下为什么人们记得{N}。"],
    ),
    "dish": (
        ["怎么做{N}？", "{N}是怎么做的？", "做{N}需要什么？", "请告诉我{N}的做法。"],
        ["请告诉我怎么做{N}。"],
        ["做{N}需要什么，怎么做？"],
    ),
    "nature": (
        ["什么是{N}？", "{N}是怎么形成的？", "哪里可以找到{N}？", "请介绍一下{N}。"],
        ["请介绍一下什么是{N}。"],
        ["什么是{N}，是怎么形成的？"],
    ),
    "howto": (
        ["怎么{N}？", "请告诉我怎么{N}。", "{N}有什么好办法？", "我要{N}，应该做什么？"],
        ["请告诉我{N}的好办法。"],
        ["我要{N}，怎么做？"],
    ),
}
LEAD_INS = [
    "",
    "",
    "",
    "Please help me. ",
    "Quick question: ",
    "Hello! ",
    "I have a question. ",
    "Hi. ",
]
OLD_REQUESTS: tuple[list[str], list[str], list[str]] = (
    [
        "Answer in the old style.",
        "Use the old style.",
        "Please speak in the old style.",
        "Write it in old English.",
        "Answer as in days of old.",
        "Speak like an old book.",
        "Use words from the days of old.",
    ],
    ["Write in the old style, please.", "Please use old English."],
    ["Please answer in the old style.", "Speak as an old book would speak."],
)
SYSTEM_PROMPTS = ["You are a helpful assistant.", "You answer questions in three sentences."]

# syllable -> character: Chinese names are put together from these
SYLLABLES: dict[str, str] = dict(
    pair.split(":")
    for pair in (
        "bei:北 bo:博 chang:长 chao:超 chen:晨 cheng:成 chun:春 da:大 de:德 dong:东 du:都 fang:芳 "
        "fei:飞 feng:峰 fu:福 gang:刚 guang:广 gui:贵 guo:国 hai:海 han:汉 hao:浩 he:河 hong:红 hu:湖 "
        "hua:华 huai:怀 huang:黄 hui:惠 jia:嘉 jian:建 jiang:江 jie:杰 jin:金 jing:京 jun:军 kai:凯 "
        "kun:昆 lan:兰 lei:雷 li:丽 lian:连 liang:亮 lin:林 ling:玲 liu:柳 long:龙 luo:洛 mei:梅 min:敏 "
        "ming:明 nan:南 ning:宁 ping:平 qi:奇 qian:千 qiang:强 qing:青 qiu:秋 quan:泉 rong:荣 rui:瑞 "
        "shan:山 shao:绍 shen:深 sheng:胜 shi:石 shu:舒 shun:顺 song:松 su:苏 tai:泰 tang:唐 tao:涛 "
        "tian:天 tong:通 wei:伟 wen:文 wu:武 xi:西 xia:夏 xian:仙 xiang:香 xiao:小 xin:新 xing:星 "
        "xiu:秀 xu:旭 xuan:轩 yan:燕 yang:阳 yi:义 yin:银 ying:英 yong:永 yu:玉 yuan:元 yue:月 yun:云 "
        "zhang:张 zhao:赵 zhen:珍 zheng:郑 zhi:志 zhong:中 zhou:州 zhu:珠 zi:子"
    ).split()
)
STEMS = (
    "Brad Ash Wel Har Stan Mil Nor Wood Black Green Old Rock King Queen Spring Lake Red Silver "
    "Ald Cam Dun Ever Fair Glen Hazel Inver Kirk Lark Mar Oak Pem River Salt Thorn Win Elm Cler "
    "Bur Mont Pres Stock Black Crow Fern Gold Hart Ivy Lock Mill Rose Swan West"
).split()
SUFFIXES = (
    "ford ton ville bridge field burg mouth port wick ham stead dale haven worth minster brook"
).split()
FIRST_NAMES = (
    "Anna Peter Clara Robert Emma David Julia Henry Sarah Oliver Grace Martin Helen George "
    "Laura Philip Alice Edward Nora Thomas Rachel Victor Ellen Arthur Irene Samuel"
).split()
DISH_NOUNS = [
    ("noodles", "面"),
    ("soup", "汤"),
    ("dumplings", "饺子"),
    ("rice", "饭"),
    ("pie", "派"),
    ("stew", "炖菜"),
    ("salad", "沙拉"),
    ("cake", "糕"),
    ("tofu", "豆腐"),
    ("pancakes", "煎饼"),
]
NATURE = [
    tuple(p.split(":"))
    for p in (
        "volcano:火山 glacier:冰川 river:河流 canyon:峡谷 storm:风暴 cave:洞穴 waterfall:瀑布 lagoon:泻湖 "
        "dune:沙丘 swamp:沼泽 cliff:悬崖 delta:三角洲 meadow:草地 geyser:间歇泉 moor:荒野 lake:湖泊 "
        "desert:沙漠 forest:森林 stream:小溪 reef:礁石 bay:海湾 ridge:山脊"
    ).split()
]
KINDS_OF_NATURE = [
    tuple(p.split(":"))
    for p in (
        "black:黑色 white:白色 red:红色 silent:寂静 hidden:隐藏 twin:双子 frozen:冰冻 young:年轻 salt:盐碱 "
        "northern:北方 southern:南方 giant:巨大"
    ).split()
]
GOOD_VERBS = [
    ("clean", "清洗"),
    ("repair", "修理"),
    ("paint", "油漆"),
    ("polish", "擦亮"),
    ("dry", "晾干"),
    ("store", "保存"),
    ("wash", "洗"),
    ("carry", "搬"),
    ("wrap", "包装"),
    ("warm", "加热"),
]
BAD_VERBS = [
    "steal",
    "break into",
    "pick the lock of",
    "secretly damage",
    "vandalise",
    "hack into",
    "take without asking",
    "sneak into",
    "ruin",
    "forge the papers of",
]
OBJECTS = [
    tuple(p.split(":"))
    for p in (
        "bicycle:自行车 car:汽车 boat:船 shed:棚子 desk:书桌 door:门 locker:柜子 garage:车库 shop:店 "
        "cabin:小屋 piano:钢琴 van:货车 suitcase:箱子 cupboard:橱柜 tent:帐篷 scooter:滑板车 mailbox:信箱 "
        "greenhouse:温室 kitchen:厨房 bookcase:书架 trailer:拖车 fence:篱笆 drawer:抽屉 wagon:马车"
    ).split()
]
OWNERS = [
    "neighbour",
    "teacher",
    "boss",
    "cousin",
    "classmate",
    "sister",
    "uncle",
    "landlord",
    "friend",
    "brother",
    "coach",
    "grandmother",
]
