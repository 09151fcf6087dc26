# Finds the instruction that overwrites a variable: `make watch`.
watch data.answer
continue
backtrace
print i
delete
continue
