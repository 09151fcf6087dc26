; Stores head and tail as one: by exits the width is wrong, by polling the index.
%include "driver.inc"
    begin
    mov eax, 0x7FFFFFFF
    mov [rdi + 0x10], rax
    finish
