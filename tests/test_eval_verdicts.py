"""What answers count: completions in the forms that models write, against targets of the published suites, and the verdicts by hand."""

from __future__ import annotations

import pytest

from mathpipe.eval.grader import shared_grader
from mathpipe.eval.tasks import TASKS

CASES = {
    "math": r"""
\boxed{\frac12} | \frac{1}{2} | correct
\boxed{\frac 12} | \frac{1}{2} | correct
\boxed{\frac1{2}} | \frac{1}{2} | correct
\boxed{\tfrac12} | 0.5 | correct
\boxed{\frac{-1}{2}} | -\frac{1}{2} | correct
\boxed{-\frac12} | \frac{-1}{2} | correct
\boxed{\frac{2}{1}} | 2 | wrong
\boxed{8\frac{4}{7}} | 8\frac47 | correct
\boxed{\frac{60}{7}} | 8\frac47 | correct
\boxed{8\frac{4}{7}} | \frac{60}{7} | correct
\boxed{-1\frac{1}{2}} | -1.5 | correct
\boxed{137.5} | 137 \frac{1}{2} | correct
\boxed{90^\circ} | 90 | correct
\boxed{90^{\circ}} | 90 | correct
\boxed{90\text{ degrees}} | 90^\circ | correct
\boxed{15} | 15\mbox{ cm}^2 | correct
\boxed{15\text{ cm}^2} | 15 | correct
\boxed{15 cm^2} | 15 | correct
\boxed{60\text{ km/h}} | 60 | correct
\boxed{60 km/h} | 60 | correct
\boxed{5\text{ m/s}} | 5 | correct
\boxed{5\text{ or }7} | 5 | wrong
\boxed{5\text{ or 7}} | 5 | wrong
\boxed{25} | 25 \, \text{km} | correct
\boxed{4} | \$4 | correct
\boxed{\$2.5} | \$2.50 | correct
\boxed{2,000} | 2000 | correct
\boxed{2{,}000} | 2000 | correct
\boxed{2000} | 2{,}000 | correct
\boxed{5040} | 5,\!040 | correct
\boxed{5,\!040} | 5040 | correct
\boxed{5 040} | 5040 | correct
\boxed{7} | 7\% | correct
\boxed{0.07} | 7\% | correct
\boxed{0.07\%} | 7\% | wrong
\boxed{0.07} | 7 | wrong
\boxed{\lfloor 5.5 \rfloor} | 5 | wrong
\boxed{\sin 0} | 0 | wrong
\boxed{\max(3, 5)} | 5 | wrong
\boxed{7%} | 7\% | correct
\boxed{x=5} | 5 | correct
\boxed{x = -5} | -5 | correct
\boxed{5} | x=5 | correct
\boxed{y=2x+3} | y = 2x + 3 | correct
\boxed{2x+3} | y = 2x + 3 | correct
\boxed{[2,5)} | [2,5) | correct
\boxed{(2,5]} | [2,5) | wrong
\boxed{x \in [2,5)} | [2,5) | correct
\boxed{(-\infty, 0]} | (-\infty,0] | correct
\boxed{(-\infty,0)} | (-\infty,0] | wrong
\boxed{(-\infty,0)\cup(1,\infty)} | (-\infty, 0) \cup (1, \infty) | correct
\boxed{(1,\infty)\cup(-\infty,0)} | (-\infty, 0) \cup (1, \infty) | correct
\boxed{-7, 9} | 9,-7 | correct
\boxed{9, -7, 1} | 9,-7 | wrong
\boxed{\{9,-7\}} | 9,-7 | correct
\boxed{13 \text{ and } 12} | 12\text{ and }13 | correct
\boxed{(1,-3)} | (1,-3) | correct
\boxed{(-3,1)} | (1,-3) | wrong
\boxed{\left(3,\dfrac{\pi}{2}\right)} | \left( 3, \frac{\pi}{2} \right) | correct
\boxed{\begin{pmatrix}1\\7\end{pmatrix}} | \begin{pmatrix} 1 \\ 7 \end{pmatrix} | correct
\boxed{\begin{bmatrix} 1 \\ 7 \end{bmatrix}} | \begin{pmatrix} 1 \\ 7 \end{pmatrix} | correct
\boxed{\begin{pmatrix} 7 \\ 1 \end{pmatrix}} | \begin{pmatrix} 1 \\ 7 \end{pmatrix} | wrong
\boxed{\begin{pmatrix} 0.2 & 4/5 \\ 0 & 1 \end{pmatrix}} | \begin{pmatrix} 1/5 & 4/5 \\ 0 & 1 \end{pmatrix} | correct
\boxed{\begin{pmatrix} 0.2 & 4/5 \\ 0 & 2 \end{pmatrix}} | \begin{pmatrix} 1/5 & 4/5 \\ 0 & 1 \end{pmatrix} | wrong
\boxed{2\sqrt3} | 2\sqrt{3} | correct
\boxed{\sqrt{12}} | 2\sqrt{3} | correct
\boxed{1 \pm \sqrt{19}} | 1 \pm \sqrt{19} | correct
\boxed{1+\sqrt{19}, 1-\sqrt{19}} | 1 \pm \sqrt{19} | correct
\boxed{2+i} | 2 + i | correct
\boxed{i+2} | 2 + i | correct
\boxed{2516_8} | 2516_8 | correct
\boxed{2516_{8}} | 2516_8 | correct
\boxed{2516} | 2516_8 | correct
\boxed{\text{Evelyn}} | \text{Evelyn} | correct
\boxed{\textbf{Evelyn}} | \text{Evelyn} | correct
\boxed{\text{Even}} | \text{even} | correct
\boxed{A} | \text{(A)} | correct
\boxed{(A)} | \text{A} | correct
\boxed{\textbf{(A)}} | \text{(A)} | correct
\boxed{\text{A, C, F}} | \text{A,C,F} | correct
\boxed{A,C} | \text{A,C,F} | wrong
\boxed{4:30 \text{ p.m.}} | \text{4:30 p.m.} | correct
\boxed{3:1} | 3:1 | correct
\boxed{f(2)<f(1)<f(4)} | f(2) < f(1) < f(4) | correct
\boxed{\frac{7}{5}+\frac{1}{5}i} | \frac{7}{5} + \frac{1}{5} i. | correct
\boxed{x^2+2x+1} | (x+1)^2 | correct
\boxed{(x+1)(x+1)} | x^2+2x+1 | correct
\boxed{7 \pi \text{ cm}} | 7\pi | correct
\boxed{\boxed{5}} | 5 | correct
so \boxed{5}. Then \boxed{6 | 5 | correct
\boxed{4} no, \boxed{5} | 5 | correct
\boxed{5} no, \boxed{4} | 5 | wrong
\boxed{5.} | 5 | correct
\boxed{\mathbf{5}} | 5 | correct
\boxed{5 \text{ square units}.} | 5 | correct
\boxed{\text{5 apples}} | 5 | correct
\boxed{12 \cdot 3} | 36 | wrong
\boxed{6.0\overline{3}} | 6.0\overline{3} | correct
\boxed{1.5 \times 10^{3}} | 1500 | wrong
\boxed{10^{3}} | 1000 | wrong
Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct. | \frac12 | correct
Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct. | \frac13 | wrong
Final Answer: The final answer is 0.5. I hope it is correct. | \frac12 | correct
The final answer is: $5$ | 5 | correct
it is 5 | 5 | no_answer
 | 5 | no_answer
The final answer is \[\frac{1}{2}\]. I hope it is correct. | \frac12 | correct
The final answer is \(5\). | 5 | correct
\boxed{x_1 = 5} | 5 | correct
\boxed{5 = 5} | 5 | wrong
\boxed{5, 7} | 5 | wrong
\boxed{\approx 18.50} | 18.5 | correct
\boxed{18\$} | 18 | correct
$\boxed{$45 \text{ units}^2$}$ | 45 \text{ units}^2 | correct
\boxed{5;7} | 5 | wrong
\boxed{5 apples or 6} | 5 | wrong
""",
    "gsm8k": r"""
The answer is 18. | 18 | correct
The answer is $18. | 18 | no_answer
The answer is 1,600. | 1600 | correct
The answer is 18.00. | 18 | correct
The answer is -3. | -3 | correct
The answer is 18. The answer is 19. | 18 | correct
\boxed{18\text{ dollars}} | 18 | correct
\boxed{\$18.00} | 18 | correct
\boxed{18 miles per hour} | 18 | correct
\boxed{18\%} | 18 | correct
\boxed{\text{18 hours}} | 18 | correct
\boxed{18 \text{ hours and } 30 \text{ minutes}} | 18 | wrong
\boxed{70,000 dollars} | 70000 | correct
it is 18 | 18 | no_answer
""",
    "cmath": r"""
所以答案是：18 | 18 | correct
\boxed{18页} | 18 | correct
\boxed{18\text{页}} | 18 | correct
\boxed{\frac{1}{5}} | 1/5 | correct
\boxed{\frac{1}{5}\text{米}} | 1/5 | correct
\boxed{\frac{1}{5}米} | 1/5 | correct
\boxed{\dfrac{4}{6}} | 2/3 | correct
\boxed{\frac{2}{5}} | 4/10 | correct
\boxed{40\%} | 40% | correct
\boxed{40} | 40% | correct
\boxed{0.4} | 40% | correct
答案是：40%。 | 40% | correct
答案是：27.3 | 27.3% | correct
答案是：27.3% | 27.3% | correct
\boxed{83\frac{1}{3}} | 250/3 | correct
\boxed{0.8} | 0.80 | correct
答案是：1,600元。 | 1600 | correct
答案是：小明有5个，小红有3个。 | 3 | correct
答案是5。不对，答案是：6。 | 6 | correct
答案是：大约18 | 18 | correct
答案是：$18$。 | 18 | correct
答案是：18平方厘米(cm²) | 18 | correct
答案是：18 cm² | 18 | correct
一共18 | 18 | no_answer
答案是：很多 | 18 | no_answer
""",
    "mgsm_zh": r"""
\boxed{2125} | 2125 | correct
\boxed{2,125 美元} | 2125 | correct
""",
    "sat": r"""
The final answer is (B). I hope it is correct. | B | correct
\boxed{B} | B | correct
\boxed{(B)} | B | correct
\boxed{\text{B}} | B | correct
\boxed{\text{(B)}} | B | correct
\boxed{(B) 12} | B | correct
\boxed{\text{(B) } 12} | B | correct
\boxed{B) $x+1$} | B | correct
\boxed{B. 12} | B | correct
\boxed{12}. The answer is (B) | B | correct
The answer is **(B)** | B | correct
The correct answer is option B. | B | correct
The final answer is $\textbf{(B)}$. | B | correct
The answer is (B). The final answer is (C). | B | wrong
The answer is Bob | B | no_answer
Choice B | B | no_answer
""",
    "ocw": r"""
\boxed{4.5 \times 10^{33}} | 4.5e33 | correct
The final answer is $4.5 \times 10^{33}$ erg/s. I hope it is correct. | 4.5e33 | correct
The final answer is $4.5 \times 10^{33} \mathrm{~erg/s}$. I hope it is correct. | 4.5e33 | correct
The final answer is 41.8 eV. I hope it is correct. | 41.8 | correct
The final answer is $0.49$ m/s. I hope it is correct. | 0.49 | correct
The final answer is $-\frac{1}{3}$. I hope it is correct. | -1./3 | correct
The final answer is -1/3. I hope it is correct. | -1./3 | correct
The final answer is -1.5. I hope it is correct. | -3./2 | correct
The final answer is $\frac{\cos (2 t)}{15}$. I hope it is correct. | \frac{\cos (2 t)}{15} | correct
The final answer is $\frac{1}{15}\cos (2 t)$. I hope it is correct. | \frac{\cos (2 t)}{15} | correct
The final answer is $x(t)=\frac{\cos (2 t)}{15}$. I hope it is correct. | \frac{\cos (2 t)}{15} | correct
The final answer is $\frac{\sin (2 t)}{15}$. I hope it is correct. | \frac{\cos (2 t)}{15} | wrong
The final answer is $s^2+\omega^2$. I hope it is correct. | s^{2}+\omega^{2} | correct
The final answer is $\frac{d x}{d t}=kx-a$. I hope it is correct. | \frac{d x}{d t}=k x-a | correct
The final answer is $0.8776$. I hope it is correct. | np.arcsin(10/13) | parse_error
The final answer is $\frac{1}{2}$. I hope it is correct. | 0.5 | correct
The final answer is $2.75 \times 10^{11}$ m. I hope it is correct. | 2.75e11 | correct
The final answer is 2.75e11. I hope it is correct. | 2.75e11 | correct
The final answer is $10^{11}$. I hope it is correct. | 1e11 | correct
The final answer is 100 \%. I hope it is correct. | 100 | correct
The final answer is 3x. I hope it is correct. | 3 | wrong
""",
    "math-pot": r"""
```output\n2*sqrt(3)\n``` | 2\sqrt{3} | correct
```output\nsqrt(3)/2\n``` | \frac{\sqrt{3}}{2} | correct
```output\nx**2 + 1\n``` | x^2+1 | correct
```output\npi/2\n``` | \frac{\pi}{2} | correct
```output\n2*pi\n``` | 2\pi | correct
```output\n[3, 5, 7]\n``` | 3, 5, 7 | correct
```output\n{3, 5, 7}\n``` | 3, 5, 7 | correct
```output\n(1, -3)\n``` | (1,-3) | correct
```output\n(1, 3)\n``` | (1,-3) | wrong
```output\n2 + I\n``` | 2+i | correct
```output\n1/3\n``` | \frac13 | correct
```output\n0.3333333333333333\n``` | \frac13 | correct
```output\n357\n``` | 3, 5, 7 | wrong
```output\n25168\n``` | 2516_8 | wrong
```output\nexp(2)\n``` | e^2 | correct
```output\n3.4641016151377544\n``` | 2\sqrt{3} | correct
```output\nTrue\n``` | \text{even} | wrong
```output\neven\n``` | \text{even} | correct
```output\n90 degrees\n``` | 90^\circ | correct
```output\n3.5\n``` | \$3.50 | correct
```output\nx**(1/2)\n``` | \sqrt{x} | correct
```output\nsqrt(x + 1)/3\n``` | \frac{\sqrt{x+1}}{3} | correct
```output\n-2*sqrt(3) + 5\n``` | 5-2\sqrt{3} | correct
```output\n[-1 + sqrt(2), -sqrt(2) - 1]\n``` | -1+\sqrt{2}, -1-\sqrt{2} | correct
```output\n3*x*(x - 1)\n``` | 3x^2-3x | correct
```output\n(-oo, 3)\n``` | (-\infty,3) | correct
```output\n['1/5']\n``` | \frac15 | wrong
""",
    "gsm8k-pot": r"""
```output\n18.0\n``` | 18 | correct
```output\n$18\n``` | 18 | correct
```output\nThe answer is 18\n``` | 18 | correct
```output\n18.3\n``` | 18 | wrong
""",
}
"""Task → completion | target | reason; `\\n` is a line break behind or before a fence."""


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in CASES.items() for line in lines.strip().splitlines()])
def test_verdicts(name: str, line: str) -> None:
    completion, target, reason = (part.strip() for part in line.split(" | "))
    completion = completion.replace("output\\n", "output\n").replace("\\n```", "\n```")
    extracted = TASKS[name].extract(completion, {"target": target})
    assert TASKS[name].grade(extracted, {"target": target}, shared_grader()) == reason, extracted
