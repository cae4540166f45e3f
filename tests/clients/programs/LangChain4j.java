import dev.langchain4j.data.segment.TextSegment;
import dev.langchain4j.model.openai.OpenAiEmbeddingModel;
import java.io.IOException;
import java.util.List;

/** LangChain4j, with OpenAI's API. */
final class LangChain4j extends Program {
    static List<float[]> embed(List<String> texts) {
        // docs: begin
        var model = OpenAiEmbeddingModel.builder().baseUrl(BASE_URL + "/v1").apiKey(API_KEY).modelName(MODEL).build();
        var answer = model.embedAll(texts.stream().map(TextSegment::from).toList());
        return answer.content().stream().map(item -> item.vector()).toList();
        // docs: end
    }

    public static void main(String[] arguments) throws IOException {
        run(LangChain4j::embed);
        System.exit(0);
    }
}
