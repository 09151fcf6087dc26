; Stores head and tail with one access. Over exits the width is wrong; over polling the index is wrong.
%include "driver.inc"
    begin
    mov eax, 0x7FFFFFFF
    mov [rdi + 0x10], rax
    finish
