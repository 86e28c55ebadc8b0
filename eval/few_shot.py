r"""Worked examples that stand before a question for models that were not taught to chat.

GSM8K: the eight questions and chains of thought of Wei et al. 2022 (arXiv 2201.11903, table 20), in the wording of lm-evaluation-harness.
MATH: the four problems and solutions of Lewkowycz et al. 2022 (arXiv 2206.14858, appendix D). DeepSeekMath's evaluation uses both.
They stand before OCW's questions, too, for which it has four of OCW's form.
The rest is ours, where no published text is free to be quoted; its form is that of DeepSeekMath's evaluation:
- OPTIONS: choices for the four problems above (SAT, MMLU-STEM; its authors chose other numbers).
- CHINESE: six problems with solutions (CMATH, MGSM-zh), which end in "所以答案是：".
- PROGRAMS: programs for the GSM8K questions and for MATH, after Gao et al. 2023 (arXiv 2211.10435), in the form of SFT's examples.
"""

from __future__ import annotations

GSM8K: tuple[tuple[str, str], ...] = (
    (
        "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, there will be 21 trees. "
        "How many trees did the grove workers plant today?",
        "There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have been 21 - 15 = 6. "
        "The answer is 6.",
    ),
    (
        "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?",
        "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer is 5.",
    ),
    (
        "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?",
        "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, they had 74 - 35 = 39. "
        "The answer is 39.",
    ),
    (
        "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did Jason give to Denny?",
        "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - 12 = 8. The answer is 8.",
    ),
    (
        "Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys does he have now?",
        "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more toys. 5 + 4 = 9. The answer is 9.",
    ),
    (
        "There were nine computers in the server room. Five more computers were installed each day, from monday to thursday. "
        "How many computers are now in the server room?",
        "There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * 4 = 20 computers were added. "
        "9 + 20 is 29. The answer is 29.",
    ),
    (
        "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. "
        "How many golf balls did he have at the end of wednesday?",
        "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After losing 2 more, he had 35 - 2 = 33 golf "
        "balls. The answer is 33.",
    ),
    (
        "Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
        "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 - 15 dollars left. 23 - 15 is 8. "
        "The answer is 8.",
    ),
)
"""(question, chain of thought)."""

_HOPE = "Final Answer: The final answer is ${}$. I hope it is correct."
MATH: tuple[tuple[str, str, str], ...] = (
    (
        r"Find the domain of the expression  $\frac{\sqrt{x-2}}{\sqrt{5-x}}$.",
        r"The expressions inside each square root must be non-negative. Therefore, $x-2 \ge 0$, so $x\ge2$, and $5 - x \ge 0$, so "
        r"$x \le 5$. Also, the denominator cannot be equal to zero, so $5-x>0$, which gives $x<5$. Therefore, the domain of the "
        r"expression is $\boxed{[2,5)}$.",
        "[2,5)",
    ),
    (
        r"If $\det \mathbf{A} = 2$ and $\det \mathbf{B} = 12,$ then find $\det (\mathbf{A} \mathbf{B}).$",
        r"We have that $\det (\mathbf{A} \mathbf{B}) = (\det \mathbf{A})(\det \mathbf{B}) = (2)(12) = \boxed{24}.$",
        "24",
    ),
    (
        "Terrell usually lifts two 20-pound weights 12 times. If he uses two 15-pound weights instead, how many times must Terrell lift "
        "them in order to lift the same total weight?",
        r"If Terrell lifts two 20-pound weights 12 times, he lifts a total of $2\cdot 12\cdot20=480$ pounds of weight.  If he lifts two "
        r"15-pound weights instead for $n$ times, he will lift a total of $2\cdot15\cdot n=30n$ pounds of weight.  Equating this to 480 "
        "pounds, we can solve for $n$:\n\\begin{align*}\n30n&=480\\\\\n\\Rightarrow\\qquad n&=480/30=\\boxed{16}\n\\end{align*}",
        "16",
    ),
    (
        "If the system of equations\n\n\\begin{align*}\n6x-4y&=a,\\\\\n6y-9x &=b.\n\\end{align*}has a solution $(x, y)$ where $x$ and $y$ "
        "are both nonzero,\nfind $\\frac{a}{b},$ assuming $b$ is nonzero.",
        "If we multiply the first equation by $-\\frac{3}{2}$, we obtain\n\n$$6y-9x=-\\frac{3}{2}a.$$Since we also know that $6y-9x=b$, "
        "we have\n\n$$-\\frac{3}{2}a=b\\Rightarrow\\frac{a}{b}=\\boxed{-\\frac{2}{3}}.$$",
        r"-\frac{2}{3}",
    ),
)
"""(problem, solution, answer)."""
OPTIONS: tuple[tuple[tuple[str, str, str, str], str], ...] = (
    (("$(2,5]$", "$[2,5)$", "$[-5,2)$", "$(-2,5)$"), "B"),
    (("$10$", "$6$", "$14$", "$24$"), "D"),
    (("18", "20", "16", "9"), "C"),
    ((r"$-\frac{2}{3}$", r"$\frac{3}{2}$", r"$-\frac{3}{2}$", r"$\frac{1}{3}$"), "A"),
)
"""(choices, letter of the right one) for each problem of MATH."""

CHINESE: tuple[tuple[str, str], ...] = (
    ("小红有35张邮票，送给妹妹12张，她还剩多少张邮票？", "用原有的张数减去送出的张数，35-12=23。所以答案是：23。"),
    ("果园里有苹果树46棵，梨树38棵，两种树一共有多少棵？", "把两种树的棵数相加，46+38=84。所以答案是：84。"),
    ("食堂买来96千克大米，每天吃8千克，可以吃多少天？", "用总重量除以每天吃的重量，96÷8=12。所以答案是：12。"),
    (
        "一支钢笔12元，一本笔记本5元，买3支钢笔和4本笔记本一共要多少元？",
        "钢笔要3×12=36元，笔记本要4×5=20元，一共36+20=56。所以答案是：56。",
    ),
    ("一桶油用去了它的2/5，还剩18千克，这桶油原来有多少千克？", "剩下的是原来的1-2/5=3/5，所以原来有18÷(3/5)=30。所以答案是：30。"),
    (
        "鸡和兔一共有20只，它们一共有56条腿，兔有多少只？",
        "设兔有x只，那么鸡有20-x只，4x+2(20-x)=56，化简得2x=16，x=8。所以答案是：8。",
    ),
)
"""(problem, solution)."""

PROGRAMS: dict[str, tuple[tuple[str, str], ...]] = {
    "gsm8k": tuple(
        (question, program)
        for (question, _), program in zip(
            GSM8K,
            (
                "before, after = 15, 21\nprint(after - before)",
                "cars = 3\ncars += 2\nprint(cars)",
                "chocolates = 32 + 42\nprint(chocolates - 35)",
                "before, after = 20, 12\nprint(before - after)",
                "toys = 5\nfrom_each_parent = 2\nprint(toys + 2 * from_each_parent)",
                "computers, days = 9, 4\ncomputers += days * 5\nprint(computers)",
                "balls = 58\nfor lost in (23, 2):\n    balls -= lost\nprint(balls)",
                "money, bagels, price = 23, 5, 3\nprint(money - bagels * price)",
            ),
            strict=True,
        )
    ),
    "math": (
        (MATH[1][0], "from sympy import diag\n\na, b = diag(2, 1), diag(12, 1)  # any such matrices\nprint((a * b).det())"),
        (MATH[2][0], "from fractions import Fraction\n\nprint(Fraction(2 * 20 * 12, 2 * 15))"),
        (
            MATH[3][0],
            "from sympy import simplify, symbols\n\nx, y = symbols('x y', nonzero=True)\nprint(simplify((6*x - 4*y) / (6*y - 9*x)))",
        ),
        (
            r"Find the sum of the squares of the roots of $x^3 - 6x^2 + 11x - 6 = 0$.",
            "from sympy import roots, symbols\n\nx = symbols('x')\nfound = roots(x**3 - 6*x**2 + 11*x - 6)\n"
            "print(sum(count * root**2 for root, count in found.items()))",
        ),
    ),
}
"""Suite → (problem, program that prints the answer)."""


def hope(answer: str) -> str:
    """The last line of a MATH solution in Lewkowycz et al."""
    return _HOPE.format(answer)
