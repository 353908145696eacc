"""What is unrolled: networks with flat parameters, behind the two functions that an adjoint needs."""

from ddfast.students.base import GradientJvp, Step, Student, Wanted
from ddfast.students.module import ModuleStudent

__all__ = ["GradientJvp", "ModuleStudent", "Step", "Student", "Wanted"]
